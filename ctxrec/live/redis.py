"""The history store in Redis, for replicas on several machines.

Each user has a sorted set by time, and a hash that tells which events it holds; a stream keeps what no file has
yet. One script changes all three, so that they agree whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.live.store import (
    KEPT_EVENTS,
    RECENT_EVENTS,
    LoggedEvent,
    OnFailure,
    RowChange,
    StoreError,
    Table,
    Unwritten,
)

try:
    import redis
    from redis import exceptions
except ImportError as error:
    raise UserError("a Redis store needs the package redis; install it with pip install 'ctxrec[redis]'") from error

PASSWORD = "CTXREC_REDIS_PASSWORD"  # variable with the server's password, for a URL that has none
_PREFIX = "ctxrec:"
_TIMEOUT_S = 1.0
_LEASE_S = 120  # a file writer that has been silent for this long counts as dead
_PRESENT_S = 300  # a service that has not called for this long no longer counts
# KEYS: sequence, stream of events that no file has, stream of recent events. ARGV: prefix, how many events of a user to
# keep, how many recent ones, then for each event user, time, key, payload.
# A member of the set is its number and its payload: equal times stay in the order they came.
# A script is not undone where it fails, so it looks at the types of all keys before it changes one.
_APPEND = """
local function check(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. '; expected a ' .. wanted)
  end
end
local wrong = check(KEYS[1], 'string') or check(KEYS[2], 'stream') or check(KEYS[3], 'stream')
for n = 4, #ARGV, 4 do
  wrong = wrong or check(ARGV[1] .. 'h:' .. ARGV[n], 'zset') or check(ARGV[1] .. 'k:' .. ARGV[n], 'hash')
end
if wrong then return wrong end
for n = 4, #ARGV, 4 do
  local user, time, key, payload = ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3]
  local set, hash = ARGV[1] .. 'h:' .. user, ARGV[1] .. 'k:' .. user
  local number = string.format('%016d', redis.call('INCR', KEYS[1]))
  if redis.call('HSETNX', hash, key, number) == 1 then
    redis.call('ZADD', set, time, number .. payload)
    redis.call('XADD', KEYS[2], '*', 'u', user, 'e', payload)
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'u', user, 'e', payload)
    local old = redis.call('ZRANGE', set, 0, -ARGV[2] - 1)
    for _, member in ipairs(old) do
      local event = cjson.decode(string.sub(member, 17))
      local action = event[3] ~= cjson.null and event[3] or ''
      redis.call('HDEL', hash, string.format('%d|%d|', event[2], #event[1]) .. event[1] .. '|' .. action)
      redis.call('ZREM', set, member)
    end
  end
end
"""
# KEYS: sequence, sorted set of changes, hash of rows. ARGV: for each row id, row ("" for one that is taken away).
_CHANGE = """
local number = 0
for n = 1, #ARGV, 2 do
  number = redis.call('INCR', KEYS[1])
  redis.call('ZADD', KEYS[2], number, ARGV[n])
  redis.call('HSET', KEYS[3], ARGV[n], ARGV[n + 1])
end
return number
"""
# Changes and their rows at one moment. KEYS: sorted set, hash. ARGV: number of the last change that is known.
_CHANGES = """
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES')
for n = 1, #found, 2 do found[#found + 1] = redis.call('HGET', KEYS[2], found[n]) end
return found
"""
# Take a lock that is free, or that a call of ours took whose answer got lost. ARGV: owner, seconds.
_LOCK = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
# Delete a lock only where it is still ours.
_UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_TYPES = {
    "id": "string",
    "number": "string",
    "log": "stream",
    "recent": "stream",
    "taken": "string",
    "writing": "string",
    "services": "zset",
    "item number": "string",
    "item changes": "zset",
    "items": "hash",
    "user number": "string",
    "user changes": "zset",
    "users": "hash",
}
_REMEDY = {
    "busy": "",
    "damaged": "; another program changed its keys: restore them from a backup, or use another database of the server",
    "full": "; give the server more memory or disk",
    "read-only": "; it is a replica: give the address of the primary server",
    "denied": f"; give the password in {PASSWORD} or in the URL, of a user who may use all commands on {_PREFIX}*",
}


class RedisStore:
    """A `HistoryStore` on a Redis server."""

    def __init__(self, url: str, *, durable: bool = True, prefix: str = _PREFIX, on_failure: OnFailure | None = None):
        self._prefix, self._on_failure = prefix, on_failure
        self._me = uuid.uuid4().hex
        try:
            self._redis = redis.Redis.from_url(
                url,
                password=os.environ.get(PASSWORD) or None,  # one in the URL goes before it
                decode_responses=True,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
            )
            self._redis.ping()
            if durable:
                self._check_durable()
            self._check_types()
            self._redis.set(prefix + "id", uuid.uuid4().hex[:8], nx=True)
            self.id = self._redis.get(prefix + "id")
        except UserError:
            raise
        except (redis.RedisError, ValueError) as error:
            kind = _kind(error) if isinstance(error, redis.RedisError) else "busy"
            if kind == "busy":
                raise UserError(f"the Redis store does not answer ({error}); check its address") from error
            raise UserError(f"the Redis store cannot be used: it is {kind} ({error}){_REMEDY[kind]}") from error
        self._append = self._redis.register_script(_APPEND)
        self._change = self._redis.register_script(_CHANGE)
        self._changes = self._redis.register_script(_CHANGES)
        self._lock = self._redis.register_script(_LOCK)
        self._unlock = self._redis.register_script(_UNLOCK)

    def _check_durable(self) -> None:
        """Acknowledged means on disk: the server must sync its log before it answers."""
        try:
            found = self._redis.config_get("append*") | self._redis.config_get("maxmemory*")
        except redis.ResponseError as error:
            raise UserError(
                f"the Redis server does not tell whether it syncs before it answers ({error}); set durable=false to "
                "take it as it is"
            ) from error
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            raise UserError(
                f"the Redis server has appendonly {found.get('appendonly')} and appendfsync {found.get('appendfsync')}; "
                "expected yes and always, so that no acknowledged event is lost. Set these, or durable=false"
            )
        policy = found.get("maxmemory-policy", "")
        if found.get("maxmemory") != "0" and policy.startswith("allkeys"):
            raise UserError(
                f"the Redis server has maxmemory-policy {policy}, with which it forgets acknowledged events when its memory "
                "is full; set it to noeviction, or set durable=false"
            )

    def _check_types(self) -> None:
        """Refuse a server where another program uses our keys."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in _TYPES:
                pipe.type(self._prefix + name)
            found = pipe.execute()
        for (name, wanted), kind in zip(_TYPES.items(), found, strict=True):
            if kind not in (wanted, "none"):
                raise UserError(
                    f"the Redis store is damaged: its key {self._prefix + name!r} is a {kind}; expected a {wanted}"
                    f"{_REMEDY['damaged']}"
                )

    @contextlib.contextmanager
    def _answering(self) -> Iterator[redis.Redis]:
        """The connection; whatever fails becomes a `StoreError`, of which `on_failure` is told."""
        try:
            yield self._redis
        except (redis.RedisError, ValueError, TypeError, StoreError) as error:
            kind = _kind(error)
            failure = error if isinstance(error, StoreError) else StoreError(f"Redis: {error}{_REMEDY[kind]}", kind)
            if self._on_failure is not None:
                self._on_failure(failure)
            raise failure from error

    def append(self, events: Sequence[LoggedEvent]) -> None:
        args: list = [self._prefix, KEPT_EVENTS, RECENT_EVENTS]
        for e in events:
            key = f"{e.time_us}|{len(e.item_id.encode())}|{e.item_id}|{e.action or ''}"
            args += [e.user_id, e.time_us, key, e.payload()]
        with self._answering():
            self._append(keys=[self._prefix + name for name in ("number", "log", "recent")], args=args)

    def latest(self, users: Sequence[str], until_us: Sequence[int]) -> list[list[LoggedEvent]]:
        with self._answering() as server:
            with server.pipeline(transaction=False) as pipe:
                for user, until in zip(users, until_us, strict=True):
                    pipe.zrange(
                        f"{self._prefix}h:{user}",
                        until,
                        "-inf",
                        desc=True,
                        byscore=True,
                        offset=0,
                        num=KEPT_EVENTS,
                    )
                found = pipe.execute()
            return [
                [LoggedEvent.of_payload(user, member[16:]) for member in reversed(members)]
                for user, members in zip(users, found, strict=True)
            ]

    def events_since(self, mark: Any, limit: int) -> tuple[list[LoggedEvent], Any]:
        after = "-" if mark is None else f"({mark}"
        with self._answering() as server:
            rows = server.xrange(self._prefix + "recent", min=after, count=limit)
            events = [LoggedEvent.of_payload(row["u"], row["e"]) for _, row in rows]
        return events, rows[-1][0] if rows else mark

    def take_unwritten(self, limit: int) -> Unwritten | None:
        with self._answering():
            if not self._lock(keys=[self._prefix + "writing"], args=[self._me, _LEASE_S]):
                return None
        try:
            with self._answering():
                found = self._take(limit)
        except BaseException:  # without it nobody would write until the lease ends
            with contextlib.suppress(StoreError):
                self.release()
            raise
        if found is None:
            self.release()
        return found

    def _take(self, limit: int) -> Unwritten | None:
        taken, stream = self._prefix + "taken", self._prefix + "log"
        last = self._redis.get(taken) or "+"  # left by a writer that died: the same file again
        rows = self._redis.xrange(stream, max=last, count=None if last != "+" else limit)
        if not rows:
            self._redis.delete(taken)
            return None
        self._redis.set(taken, rows[-1][0])
        name = f"live-{self.id}-{rows[0][0]}-{rows[-1][0]}.parquet"
        return Unwritten(name, rows[-1][0], [LoggedEvent.of_payload(row["u"], row["e"]) for _, row in rows])

    def written(self, taken: Unwritten) -> None:
        time_ms, number = taken.last.split("-")
        try:
            with self._answering() as server, server.pipeline(transaction=True) as pipe:
                pipe.xtrim(self._prefix + "log", minid=f"{time_ms}-{int(number) + 1}", approximate=False)
                pipe.delete(self._prefix + "taken")
                pipe.execute()
        finally:
            self.release()

    def num_unwritten(self) -> int:
        with self._answering() as server:
            with server.pipeline(transaction=True) as pipe:
                pipe.xlen(self._prefix + "log")
                pipe.get(self._prefix + "id")
                waiting, store = pipe.execute()
            if store != self.id:
                found = "is empty" if store is None else f"holds another store ({store})"
                raise StoreError(
                    f"Redis: the server {found}, and not the store {self.id} that this service began with; restore it "
                    "from a backup, or start the service again to go on with what is there",
                    "damaged",
                )
            return int(waiting)

    def other_services(self, me: str) -> list[str]:
        key, now = self._prefix + "services", time.time()
        with self._answering() as server, server.pipeline(transaction=True) as pipe:
            pipe.zremrangebyscore(key, "-inf", now - _PRESENT_S)
            pipe.zadd(key, {me: now})
            pipe.zrange(key, 0, -1)
            found = pipe.execute()[-1]
        return sorted(name for name in found if name != me)

    def release(self) -> None:
        with self._answering():  # where it fails, the lease ends by itself
            self._unlock(keys=[self._prefix + "writing"], args=[self._me])

    def change_rows(self, table: Table, rows: Mapping[str, dict[str, Any] | None]) -> int:
        args = [text for name, row in rows.items() for text in (name, "" if row is None else json.dumps(row))]
        with self._answering():
            return int(self._change(keys=self._row_keys(table), args=args))

    def row_changes(self, table: Table, since: int) -> list[RowChange]:
        with self._answering():
            found = self._changes(keys=self._row_keys(table)[1:], args=[since])
            num = len(found) // 3
            return [
                RowChange(int(number), name, json.loads(row) if row else None)
                for name, number, row in zip(
                    found[: 2 * num : 2], found[1 : 2 * num : 2], found[2 * num :], strict=True
                )
            ]

    def posted_rows(self, table: Table, ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        if not ids:
            return {}
        with self._answering() as server:
            rows = server.hmget(self._row_keys(table)[2], list(ids))
            return {n: json.loads(row) if row else None for n, row in zip(ids, rows, strict=True) if row is not None}

    def _row_keys(self, table: Table) -> list[str]:
        """Keys of the number of the last change, of the changes and of the rows of a table."""
        return [self._prefix + name for name in (f"{table[:-1]} number", f"{table[:-1]} changes", table)]

    def close(self) -> None:
        self._redis.close()


def _kind(error: Exception) -> str:
    """The kind of a `StoreError` for an error of the server, or of what it answered."""
    text = str(error)
    if isinstance(error, redis.OutOfMemoryError) or "MISCONF" in text:
        return "full"
    if isinstance(error, redis.ReadOnlyError):
        return "read-only"
    if isinstance(error, (redis.AuthenticationError, exceptions.NoPermissionError, exceptions.AuthorizationError)):
        return "denied"
    if isinstance(error, (ValueError, TypeError)) or "WRONGTYPE" in text or "not an integer" in text:
        return "damaged"  # JSON that cannot be read, or a key of another type
    return "busy"

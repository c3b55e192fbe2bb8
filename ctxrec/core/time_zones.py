"""Names of time zones: which there are, and the zone of a name."""

from __future__ import annotations

import difflib
import functools
import zoneinfo

from ctxrec.core.errors import UserError

UTC = "UTC"
TIMEZONE = "timezone"  # in the context of a request, and as a column of a requests file
_SHOWN = 40  # characters of a wrong name that a message repeats


@functools.cache
def zone_names() -> frozenset[str]:
    """IANA names of all zones, such as "Asia/Shanghai"; without those that mean the zone of the machine."""
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory"})


def check_zone(name: object, what: str) -> str:
    """The name of a time zone, checked against the list of all of them, so that no other file is ever looked for.

    Args:
        name: an IANA name, such as "Asia/Shanghai". The case of its letters counts.
        what: what the name is of, for the message.

    Raises:
        UserError: there is no such zone; names those that are spelled alike.
    """
    if isinstance(name, str) and name in zone_names():
        return name
    found = repr(name if not isinstance(name, str) or len(name) <= _SHOWN else name[:_SHOWN] + "...")
    near = "" if not isinstance(name, str) else ", ".join(_near(name[:_SHOWN]))
    raise UserError(
        f"{what} is {found}, which is no time zone; expected an IANA name such as "
        + (f"{near}" if near else '"Asia/Shanghai", "America/New_York" or "UTC"')
    )


@functools.lru_cache(maxsize=1024)  # more than there are
def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The zone of a name that `check_zone` knows."""
    return zoneinfo.ZoneInfo(check_zone(name, TIMEZONE))


@functools.lru_cache(maxsize=256)
def _near(name: str) -> tuple[str, ...]:
    """At most three zones whose names, or whose last parts, are spelled like a name."""
    by_lower: dict[str, str] = {}
    places = (zone for zone in zone_names() if not zone.startswith("Etc/"))  # Etc/GMT+8 is eight hours behind
    for zone in sorted(places, key=lambda zone: ("/" not in zone, len(zone), zone)):
        for key in (zone.lower(), zone.rsplit("/", 1)[-1].lower()):
            by_lower.setdefault(key, zone)
    found = difflib.get_close_matches(name.strip().lower().replace(" ", "_"), by_lower, n=3, cutoff=0.7)
    return tuple(dict.fromkeys(f'"{by_lower[key]}"' for key in found))

// Times on the clock of the log's zone. "Wall" seconds are what that clock shows, counted as if it were in UTC.

let format = formatOf("UTC");

function formatOf(zone) {
  const parts = { year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric", second: "numeric" };
  return new Intl.DateTimeFormat("en-US", { ...parts, hourCycle: "h23", era: "short", timeZone: zone });
}

// A zone that the browser does not know stays UTC. Returns the zone that is used.
export function useZone(zone) {
  try {
    format = formatOf(zone);
    return zone;
  } catch {
    format = formatOf("UTC");
    return "UTC";
  }
}

export function wall(seconds) {
  const found = Object.fromEntries(format.formatToParts(seconds * 1000).map(({ type, value }) => [type, value]));
  const year = found.era.startsWith("B") ? 1 - found.year : Number(found.year);
  return Date.UTC(year, found.month - 1, found.day, found.hour, found.minute, found.second) / 1000;
}

// The instant of what the clock shows; of two such, where the clock is put back, the first.
export function instant(shown) {
  const before = wall(shown - 86400) - (shown - 86400);
  const after = wall(shown + 86400) - (shown + 86400);
  if (wall(shown - before) === shown || wall(shown - after) !== shown) return shown - before;
  return shown - after;
}

"""Style sheet of `report.html`: system fonts, light and dark, readable on paper and on a phone."""

STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --muted: #5b6675; --rule: #e2e6ec; --grid: #e7eaef;
  --model: #1f5fd0; --before: #7fa6ea; --best: #c2570c; --other: #aab4c1;
  --text: #7a3fb0; --limit: #3c8f5a; --mark: #d9f2e1; --mark-ink: #14532d; }
@media (prefers-color-scheme: dark) { :root { --page: #10141a; --card: #181e27; --ink: #e6eaf0; --muted: #9aa6b6;
  --rule: #2a3340; --grid: #27303c; --model: #6ea4ff; --before: #3d6bb8; --best: #f0934a; --other: #56627a; --text: #b58be6; --limit: #63c088;
  --mark: #123d26; --mark-ink: #b5f0cb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif, "Apple Color Emoji", "Noto Color Emoji"; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 60px; }
h1 { font-size: 34px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 0 0 6px; }
h3 { font-size: 15px; margin: 0 0 8px; overflow-wrap: anywhere; }
h4 { font-size: 12px; margin: 0 0 4px; color: var(--muted); font-weight: 600; }
p { margin: 0 0 14px; max-width: 78ch; }
.finding { font-size: 16.5px; font-weight: 600; }
.kicker { color: var(--model); font-weight: 600; margin: 0 0 4px; }
.lead, .muted { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 12px; margin: 22px 0 8px; }
.tile, section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 14px 16px; font-size: 13px; }
.tile-name { font-weight: 600; }
.tile-value { font-size: 28px; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
section { padding: 24px; margin-top: 18px; min-width: 0; }
.chart, .scroll { overflow-x: auto; }
.chart svg { min-width: 600px; }
svg { display: block; width: 100%; height: auto; font-size: 12.5px; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .muted { fill: var(--muted); }
svg .strong, svg .heading { font-weight: 650; }
.grid { stroke: var(--grid); }
.boundary { stroke: var(--muted); stroke-dasharray: 3 4; }
.whisker { stroke: var(--ink); stroke-width: 1.3; opacity: .75; }
.bar.model, .dot.model { fill: var(--model); } .range.model, .curve.model { stroke: var(--model); }
.bar.before, .dot.before { fill: var(--before); } .range.before, .curve.before { stroke: var(--before); }
.bar.best, .dot.best { fill: var(--best); } .range.best, .curve.best { stroke: var(--best); }
.bar.other, .dot.other { fill: var(--other); } .range.other, .curve.other { stroke: var(--other); }
.bar.text, .dot.text { fill: var(--text); } .range.text, .curve.text { stroke: var(--text); }
.bar.limit, .dot.limit { fill: var(--limit); } .range.limit { stroke: var(--limit); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.range { stroke-width: 2; opacity: .55; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 8px; padding: 0; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { width: 16px; height: 16px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: 13px; margin-bottom: 4px; }
table { border-collapse: collapse; width: 100%; margin: 14px 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--muted); font-size: 12px; font-weight: 600; vertical-align: bottom; }
tbody th { text-align: left; font-weight: 500; min-width: 130px; }
thead th:first-child { text-align: left; }
tr.model th, tr.model td { font-weight: 650; color: var(--model); }
.interval { display: block; font-size: 11px; font-weight: 400; color: var(--muted); white-space: nowrap; }
details { margin-top: 10px; } summary { cursor: pointer; font-weight: 600; font-size: 14px; }
summary:focus-visible, .scroll:focus-visible, pre:focus-visible { outline: 2px solid var(--model); outline-offset: 2px; }
.users { display: grid; gap: 14px; }
article > p { margin: -4px 0 8px; font-size: 13px; }
article { border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; font-size: 13.5px; }
.columns ul, .columns ol { margin: 0; padding-left: 20px; overflow-wrap: anywhere; }
mark { background: var(--mark); color: var(--mark-ink); font-weight: 600; border-radius: 3px; padding: 0 3px; }
pre { overflow-x: auto; background: var(--page); border-radius: 6px; padding: 12px; font-size: 12.5px; }
@media print { body { background: none; } section, .tile, article { break-inside: avoid; } }
"""

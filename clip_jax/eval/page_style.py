"""The look of a page: light and dark, on a phone and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fff; --raised: #f5f6f8; --text: #1b1d22; --quiet: #5a616e; --rule: #d9dde4;
  --accent: #2563eb; --right: #157f3d; --wrong: #b42318; --bar: #e3e8f1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161b; --raised: #1d2027; --text: #e7e9ee; --quiet: #a3abb9; --rule: #343944;
    --accent: #4b8bf5; --right: #4cc27b; --wrong: #ff8a7a; --bar: #2a2f3a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
.quiet, .none, caption, figcaption, .key { color: var(--quiet); }
.quiet, .key, caption { font-size: .875rem; }
.key { overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .75rem 0; }
.wide:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; }
thead th { font-size: .875rem; color: var(--quiet); vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; max-width: 18rem; min-width: 7rem; overflow-wrap: anywhere; }
caption span { display: block; max-width: min(46rem, calc(100vw - 2rem)); }
td.words, th.words { text-align: left; }
td.words { min-width: 7rem; overflow-wrap: anywhere; }
th .metric { display: block; font-size: .8rem; font-weight: 400; color: var(--quiet); }
td .source { display: block; min-width: 11rem; max-width: 15rem; margin-left: auto;
  font-size: .8rem; color: var(--quiet); }
summary { cursor: pointer; overflow-wrap: anywhere; }
td summary { white-space: nowrap; }
td details[open] { min-width: 9rem; }
details dl { display: grid; grid-template-columns: auto auto; gap: .1rem .8rem; margin: .4rem 0;
  font-size: .875rem; }
dt { text-align: left; color: var(--quiet); } dd { margin: 0; text-align: right; }
.better, .worse { white-space: nowrap; }
.better { color: var(--right); font-weight: 600; } .worse { color: var(--wrong); font-weight: 600; }
b { font-weight: 600; } .interval, .interval data { white-space: nowrap; }
.bar { display: block; width: 100%; min-width: 6rem; height: .8rem; margin-top: .35rem;
  background: var(--bar); border-radius: 2px; print-color-adjust: exact; }
.bar span { display: block; height: 100%; background: var(--accent); border-radius: 2px;
  print-color-adjust: exact; }
.bars { width: 100%; } .bars th, .bars td { padding: .15rem .5rem .15rem 0; border: 0; }
.bars td:nth-child(2) { width: 55%; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 0 2.5rem; }
.columns > * { min-width: 0; }
.matrix th, .matrix td { padding: .2rem .3rem; text-align: center; vertical-align: middle;
  min-width: 2.1rem; border: 1px solid var(--rule); print-color-adjust: exact; font-size: .85rem; }
.matrix thead th { vertical-align: bottom; }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.matrix th:first-child { text-align: right; min-width: 7rem; max-width: 11rem;
  overflow-wrap: anywhere; line-height: 1.2; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure img, .found img { width: 100%; height: auto; aspect-ratio: 1; display: block;
  border-radius: 4px; background: var(--raised); }
.small img { image-rendering: pixelated; }
figcaption { font-size: .875rem; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { color: var(--text); font-weight: 600; }
.query { margin: 1rem 0 1.5rem; padding: .9rem; background: var(--raised); border-radius: 8px;
  break-inside: avoid; }
.query > p { margin: 0 0 .6rem; max-width: none; }
.found { display: grid; grid-template-columns: repeat(5, 1fr); gap: .6rem; margin: 0; padding: 0;
  list-style: none; max-width: 44rem; }
.found li { min-width: 0; font-size: .8rem; text-align: center; color: var(--quiet); }
.found li img { border: 3px solid transparent; }
.found li.hit img { border-color: var(--right); }
.hit, .found li.hit { color: var(--right); }
.side { display: grid; grid-template-columns: minmax(4.5rem, 9rem) minmax(0, 1fr);
  gap: 1rem;
  align-items: start; }
.side img { width: 100%; height: auto; border-radius: 4px; }
.side ol { margin: 0; padding-left: 1.4rem; } .side li { overflow-wrap: anywhere; }
.blank { aspect-ratio: 1; display: grid; place-items: center; text-align: center; padding: .5rem;
  background: var(--raised); color: var(--quiet); font-size: .8rem; border-radius: 4px; }
svg { display: block; width: 100%; max-width: 26rem; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font-size: 12px; } svg .axis { stroke: var(--rule); }
svg .ideal { stroke: var(--quiet); stroke-dasharray: 4 4; }
svg .dots { fill: var(--accent); }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; }
svg .amount { fill: var(--bar); }
details.apart { margin-top: 1.5rem; }
.messages { font-size: .875rem; max-height: 20rem; overflow: auto; padding-left: 1.3rem; }
.messages li { overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  main { padding: 1rem .9rem 3rem; } .found { gap: .3rem; } th, td { padding: .3rem .4rem; }
  table { font-size: .875rem; } thead th { font-size: .8rem; }
  tbody th { min-width: 5.5rem; } td .source { min-width: 6.5rem; overflow-wrap: anywhere; }
  td summary { white-space: normal; overflow-wrap: anywhere; } .interval { white-space: normal; }
  .cards { grid-template-columns: repeat(2, 1fr); } .bars td:nth-child(2) { width: 30%; }
  .bars tbody th { min-width: 6.5rem; }
  details .wide th, details .wide td { padding: .3rem .25rem; font-size: .8rem; }
  details .wide th:first-child { padding-left: 0; }
  .bar { min-width: 4rem; } .side { grid-template-columns: 5rem minmax(0, 1fr); gap: .7rem; }
  .side ol { font-size: .9rem; }
}
@media print {
  main { max-width: none; padding: 0; } .wide, .messages { overflow: visible; max-height: none; }
  tr { break-inside: avoid; } a { color: inherit; text-decoration: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .back { display: none; }
}
"""

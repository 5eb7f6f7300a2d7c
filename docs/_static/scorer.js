// Who types words into the search wants to do something: pages that tell how come before the others, unless
// the name of a class or a function was typed.
"use strict";
var Scorer = {
  score: ([page, title, anchor, text, score, file, kind]) => {
    if (kind === "object" || kind === "index") return score;
    if (page.startsWith("how-to/")) return score + 12;
    if (page.startsWith("tutorial/")) return score + 8;
    if (/performance|proof|soak|design|maintainers/.test(page)) return score - 10;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

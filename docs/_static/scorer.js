// Sphinx finds the pages that hold each word of what was typed, and ranks all of them alike. People type
// questions. So here a page counts by the words that it has and by how rare they are, three times where they
// stand in a heading or in what _ext/ideas.py adds, and need not have all of them.
"use strict";
var Scorer = {
  // Who types words wants to do something: pages that tell how come first.
  score: ([page, title, anchor, text, score, file, kind]) => {
    if (kind === "object" || kind === "index") return score;
    if (page === "how-to/troubleshooting") return score; // leads to the others
    if (page.startsWith("how-to/")) return score + 4;
    if (page.startsWith("tutorial/")) return score + 2;
    if (/performance|proof|soak|design|maintainers/.test(page)) return score - 4;
    return score;
  },
  objNameMatch: 30,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 40, // of a whole heading
};

const TEXT = 1, HEADING = 3, PART = 0.4; // where a word stands, and if it is only part of one that does
const SCALE = 12; // for a page that has all words, in its text
const ENOUGH = 0.4; // of what the page has that has most of it

// From each word of a main entry of the index, as ideas.py makes them, to its files.
const wordsOfIdeas = (entries) => {
  const stemmer = new Stemmer(), found = new Map();
  for (const [entry, places] of Object.entries(entries))
    for (const [file, , isMain] of places)
      if (isMain)
        for (const word of splitQuery(entry).map((part) => stemmer.stemWord(part)))
          found.set(word, [...(found.get(word) || []), file]);
  return found;
};

// From each file that has the word to what it is worth there.
const placesOf = (word, indexes) => {
  const found = new Map();
  const note = (files, worth) =>
    [files].flat().forEach((file) => found.set(file, Math.max(worth, found.get(file) || 0)));
  for (const [index, worth] of indexes) if (index.has(word)) note(index.get(word), worth);
  if (!found.size && word.length > 2)
    for (const [index, worth] of indexes)
      for (const [other, files] of index) if (other.includes(word)) note(files, worth * PART);
  return found;
};

const rank = (words) => {
  const { terms, titleterms, indexentries, docnames, titles, filenames } = Search._index;
  const indexes = [
    [new Map(Object.entries(terms)), TEXT],
    [new Map(Object.entries(titleterms)), HEADING],
    [wordsOfIdeas(indexentries), HEADING],
  ];
  const scores = new Map();
  let all = 0;
  for (const word of words) {
    const places = placesOf(word, indexes);
    if (!places.size) continue; // nobody has it: a name, or a slip
    const rarity = Math.log(1 + docnames.length / places.size);
    all += rarity;
    for (const [file, worth] of places) {
      const [had, score] = scores.get(file) || [0, 0];
      scores.set(file, [had + rarity, score + rarity * worth]);
    }
  }
  const most = Math.max(...[...scores.values()].map(([had]) => had));
  return [...scores]
    .filter(([, [had]]) => had >= ENOUGH * most)
    .map(([file, [, score]]) => [
      docnames[file], titles[file], "", null, (SCALE * score) / all, filenames[file], "text",
    ]);
};

// Of each page, or object, the best result alone. They come with the best one last.
const onePerPage = (results) => {
  const seen = new Set();
  const isFirst = ([page, title, , , , , kind]) => {
    const name = kind === "object" ? title : page;
    return !seen.has(name) && seen.add(name);
  };
  return results.reverse().filter(isFirst).reverse();
};

// Whether Sphinx puts this before what makes Search or after it, this runs when both are done.
queueMicrotask(() => {
  const search = Search._performSearch;
  Search.performTermsSearch = rank;
  Search._performSearch = (...query) => onePerPage(search(...query));
});

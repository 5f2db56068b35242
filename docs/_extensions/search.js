// The order of search results: guides first, then notebooks and references, then records of how the package came to be.
const RECORDS = /^(docs\/(decisions|research)\/|CHANGELOG|RELEASING|CONTRIBUTING|README)/;
const REFERENCES = /^(docs\/(api\/|cli)|notebooks\/)/;

var Scorer = {
  score: ([docname, title, , , score]) => {
    const query = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase().trim();
    const opens = title.toLowerCase().startsWith(query) ? 10 : 0; // "Export, share, load" for "export"
    const place = RECORDS.test(docname) ? 30 : REFERENCES.test(docname) ? 20 : 0;
    return score + opens - place;
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

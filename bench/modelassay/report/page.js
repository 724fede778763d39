"use strict";
// Draws each figure from the specification that stands beside it; nothing is loaded, whatever a specification asks for.
(() => {
  const refuse = () => Promise.reject(new Error("a report loads nothing"));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse, options: {} };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const MANY = 15000; // marks beyond which a picture is faster than a tree of elements
  const pending = [];
  for (const place of document.querySelectorAll("[data-figure]")) {
    const text = document.getElementById(place.dataset.figure).textContent;
    const many = (text.match(/\},\{/g) || []).length > MANY;
    const options = {
      actions: false, ast: true, defaultStyle: false, loader, mode: "vega-lite",
      logLevel: 1, renderer: many ? "canvas" : "svg", tooltip: { theme: dark.matches ? "dark" : "light" },
    };
    pending.push(vegaEmbed(place, JSON.parse(text), options).then(
      () => {},
      (error) => {
        place.textContent = "This figure cannot be drawn: " + error.message + ". Its numbers stand below.";
        place.dataset.failed = "";
      },
    ));
  }
  Promise.all(pending).then(() => { document.documentElement.dataset.drawn = String(pending.length); });
})();

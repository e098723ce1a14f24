// Judge: O opens, 1, 0 and S label, arrows turn the pages.
"use strict";
(() => {
  const keys = {
    o: "open", 1: "label-1", y: "label-1", 0: "label-0", n: "label-0", s: "label-unsure",
    ArrowLeft: "previous", ArrowRight: "next",
  };
  let done = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const button = document.getElementById(keys[event.key.length === 1 ? event.key.toLowerCase() : event.key]);
    if (!button || done) return;
    event.preventDefault();
    // A key that is held down labels one item.
    done = !event.repeat;
    if (done) button.click();
  });
  addEventListener("pageshow", () => { done = false; });
  document.getElementById("response")?.focus({ preventScroll: true });
})();

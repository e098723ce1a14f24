// Replay: arrow keys turn the months, space plays them one after the other.
"use strict";
(() => {
  const PAUSE = 2500;
  let timer = null;
  const at = (id) => document.getElementById(id);
  function stop() {
    clearInterval(timer);
    timer = null;
    label();
  }
  function label() {
    const button = at("play");
    if (!button) return;
    button.textContent = timer ? button.dataset.pause : button.dataset.play;
    button.setAttribute("aria-pressed", String(timer !== null));
  }
  function play() {
    if (timer) return stop();
    if (!at("next")) return;
    timer = setInterval(() => (at("next") ? at("next").click() : stop()), PAUSE);
    label();
    at("next").click();
  }
  document.addEventListener("click", (event) => { if (event.target.id === "play") play(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, summary, pre, button, .scroll")) return;
    if (event.key === "ArrowLeft") { stop(); at("previous")?.click(); }
    else if (event.key === "ArrowRight") { stop(); at("next")?.click(); }
    else if (event.key === " ") play();
    else return;
    event.preventDefault();
  });
  document.body.addEventListener("htmx:afterSettle", () => {
    label();
    if (!at("next")) stop();
  });
})();

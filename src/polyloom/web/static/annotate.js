// The annotator's desk: keys and clicks become events, sent one after the other and shown when they are on the disk.
"use strict";
(() => {
  const desk = document.getElementById("desk");
  const live = document.getElementById("saved");
  const sentences = document.getElementById("sentences");
  const csrf = JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRF-Token"];
  const kept = `annotate ${location.pathname}`;
  const LONGEST = 300000; // a longer pause is no work on this event
  let queue = [];
  let busy = false;
  let current = null; // key of the candidate that is worked on
  let marking = false; // digits and arrows go to the sentences
  let asked = null; // the pair that a question is about
  let awaited = null; // key of the candidate that an event will bring
  let picked = null; // entity that was clicked first
  let since = performance.now();

  const version = () => Number(desk.firstElementChild.dataset.version);
  const cards = () => [...desk.querySelectorAll(".candidate")];
  const card = () => cards().find((one) => one.dataset.key === current) || null;
  const say = (text, bad) => { live.textContent = text; live.classList.toggle("bad", Boolean(bad)); };
  const token = () => [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(16)).join("");
  const keep = () => { try { queue.length ? sessionStorage.setItem(kept, JSON.stringify(queue)) : sessionStorage.removeItem(kept); } catch { /* full or forbidden: the page still holds it */ } };

  // ---- sending: nothing leaves the queue before the server has answered for it
  function send(operation, fields = {}) {
    const now = performance.now();
    const milliseconds = Math.round(Math.min(now - since, LONGEST));
    since = now;
    queue.push({ operation, token: token(), milliseconds, ...fields });
    keep();
    pump();
  }
  async function pump() {
    if (busy) return;
    busy = true;
    while (queue.length) {
      say(desk.dataset.saving);
      const body = new URLSearchParams({ ...queue[0], seen: version() });
      let answer;
      try {
        answer = await fetch(desk.dataset.post, { method: "POST", body, headers: { "X-CSRF-Token": csrf } });
      } catch {
        say(desk.dataset.offline, true);
        await new Promise((wait) => setTimeout(wait, 1000));
        continue;
      }
      const text = await answer.text();
      if (![200, 409, 422].includes(answer.status) || !text.includes("data-version")) {
        say(`${desk.dataset.failed} (${answer.status})`, true);
        break;
      }
      queue.shift();
      keep();
      show(text);
      say(answer.status === 200 ? desk.dataset.saved : desk.dataset.refused, answer.status !== 200);
      if (answer.status === 409) desk.querySelector("#conflict button").focus();
    }
    busy = false;
  }
  async function poll() {
    if (busy || queue.length || document.hidden || document.querySelector("dialog[open]")) return;
    try {
      const answer = await fetch(`${desk.dataset.poll}?seen=${version()}`);
      if (answer.status !== 200 || busy || queue.length) return;
      const text = await answer.text();
      if (!text.includes("data-version")) return;
      show(text);
      say(desk.dataset.elsewhere);
    } catch { /* the next event says that the server is away */ }
  }

  // ---- showing
  function show(html) {
    const had = desk.contains(document.activeElement) || document.activeElement === document.body;
    const order = cards().map((one) => one.dataset.key);
    desk.innerHTML = html;
    if (awaited && cards().some((one) => one.dataset.key === awaited)) current = awaited;
    awaited = null;
    if (current && !card()) {
      // Changed or gone: the one that stands in its place now.
      const fresh = cards().find((one) => !order.includes(one.dataset.key));
      const place = Math.min(order.indexOf(current), cards().length - 1);
      current = (fresh || cards()[Math.max(place, 0)] || { dataset: {} }).dataset.key || null;
    }
    paint();
    if (had && !marking && card()) card().focus({ preventScroll: true });
  }
  function paint() {
    const one = card();
    const evidence = one ? one.dataset.evidence.split(" ") : [];
    for (const other of cards()) {
      const here = other === one;
      other.tabIndex = here || (!one && other === cards()[0]) ? 0 : -1;
      other.classList.toggle("current", here);
      other.querySelectorAll("button").forEach((button) => { button.tabIndex = here ? 0 : -1; });
    }
    sentences.classList.toggle("marking", marking);
    for (const sentence of sentences.children) {
      const on = evidence.includes(sentence.dataset.sentence);
      sentence.classList.toggle("is-evidence", on);
      const button = sentence.querySelector(".mark");
      button.setAttribute("aria-pressed", String(on));
      button.disabled = !one || one.dataset.status === "rejected";
      button.tabIndex = marking ? 0 : -1;
    }
    for (const mention of sentences.querySelectorAll(".mention")) {
      const of = mention.dataset.entities.trim().split(" ");
      mention.classList.toggle("is-head", Boolean(one) && of.includes(one.dataset.head));
      mention.classList.toggle("is-tail", Boolean(one) && of.includes(one.dataset.tail));
      mention.classList.toggle("is-picked", picked !== null && of.includes(picked));
    }
  }
  function go(to, focus = true) {
    if (!to) return;
    current = to.dataset.key;
    marking = false;
    paint();
    if (focus) to.focus({ preventScroll: true });
    to.scrollIntoView({ block: "nearest" });
    const first = sentences.querySelector(".is-evidence") || sentences.querySelector(".is-head");
    if (first && matchMedia("(min-width: 60rem)").matches) first.scrollIntoView({ block: "nearest" });
  }
  function step(by) {
    const all = cards();
    const at = all.indexOf(card());
    go(all[Math.min(Math.max(at < 0 ? 0 : at + by, 0), all.length - 1)]);
  }
  function fields(one) {
    return { head: one.dataset.head, relation: one.dataset.relation, tail: one.dataset.tail, evidence: one.dataset.evidence };
  }

  // ---- what can be done
  function toggle(sentence) {
    const one = card();
    if (!one || one.dataset.status === "rejected" || !sentences.children[sentence]) return;
    const now = new Set(one.dataset.evidence.split(" ").filter(Boolean));
    now.has(String(sentence)) ? now.delete(String(sentence)) : now.add(String(sentence));
    one.dataset.evidence = [...now].map(Number).sort((a, b) => a - b).join(" ");
    paint();
    send("evidence", fields(one));
  }
  const acts = {
    accept: (one) => (one.dataset.status === "rejected" ? acts.restore(one) : send("accept", fields(one))),
    remove: (one) => one.dataset.status !== "rejected" && send("remove", fields(one)),
    restore: (one) => send("add", fields(one)),
    flip: (one) => one.dataset.status !== "rejected" && send("flip", fields(one)),
    change: (one) => {
      if (one.dataset.status === "rejected") return;
      document.getElementById("change-what").replaceChildren(...one.querySelector(".triple").cloneNode(true).childNodes);
      const select = document.getElementById("change-relation");
      open("change");
      select.value = one.dataset.relation;
      document.getElementById("change-filter").focus();
    },
    evidence: (one) => {
      if (one.dataset.status === "rejected") return;
      marking = !marking;
      paint();
      if (!marking) return one.focus();
      (sentences.querySelector(".is-evidence .mark") || sentences.querySelector(".mark")).focus();
    },
  };
  const tools = {
    add: () => {
      const one = card();
      open("add");
      const head = document.getElementById("add-head");
      if (picked !== null) head.value = picked;
      else if (one) { head.value = one.dataset.head; document.getElementById("add-tail").value = one.dataset.tail; }
      head.focus();
    },
    unrelated: ({ dataset: { head, tail } }) => send("none", { head, relation: "Na", tail }),
    related: ({ dataset: { head, tail } }) => {
      tools.add();
      document.getElementById("add-head").value = head;
      document.getElementById("add-tail").value = tail;
      document.getElementById("add-filter").focus();
      asked = [head, tail].sort().join("|");
    },
    undo: () => send("undo"),
    redo: () => send("redo"),
    done: () => send("done"),
    help: () => open("help"),
    mine: (button) => {
      const { head, relation, tail, evidence } = button.dataset;
      const triple = head === undefined ? {} : { head, relation, tail, evidence };
      send(button.dataset.operation, { ...triple, new_relation: button.dataset.newRelation });
    },
    theirs: () => { desk.querySelector("#conflict").remove(); (card() || cards()[0])?.focus(); },
  };
  function open(name) {
    const dialog = document.getElementById(name);
    dialog.querySelectorAll("[data-filter]").forEach((input) => { input.value = ""; filter(input); });
    dialog.showModal();
  }
  function filter(input) {
    const select = document.getElementById(input.dataset.filter);
    const wanted = input.value.trim().toLocaleLowerCase();
    let first = null;
    for (const option of select.options) {
      option.hidden = !option.text.toLocaleLowerCase().includes(wanted);
      if (!option.hidden && !first) first = option;
    }
    if (wanted && first && select.selectedOptions[0]?.hidden !== false) select.value = first.value;
  }

  // ---- by mouse
  desk.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    const one = event.target.closest(".candidate");
    if (one) go(one, !button);
    if (!button) return;
    const act = acts[button.dataset.do];
    if (act && one) act(one);
    else if (!act) tools[button.dataset.do](button);
  });
  desk.addEventListener("focusin", (event) => {
    const one = event.target.closest(".candidate");
    if (one && one.dataset.key !== current) { current = one.dataset.key; paint(); }
  });
  sentences.addEventListener("click", (event) => {
    const mark = event.target.closest(".mark");
    if (mark) return toggle(Number(mark.closest(".sentence").dataset.sentence));
    const mention = event.target.closest(".mention");
    const entity = mention ? mention.dataset.entities.trim().split(" ").pop() : null;
    if (picked !== null && entity !== null && entity !== picked) {
      tools.add();
      document.getElementById("add-tail").value = entity;
      document.getElementById("add-filter").focus();
      picked = null;
    } else {
      picked = entity === picked ? null : entity;
    }
    paint();
  });
  for (const [name, on] of [["mouseover", true], ["mouseout", false]]) {
    document.addEventListener(name, (event) => {
      const at = event.target.closest?.("[data-entity], [data-entities]");
      if (!at) return;
      const wanted = at.dataset.entity ?? at.dataset.entities.trim().split(" ").pop();
      for (const mention of sentences.querySelectorAll(".mention")) {
        mention.classList.toggle("is-over", on && mention.dataset.entities.trim().split(" ").includes(wanted));
      }
    });
  }

  // ---- by keyboard
  const keys = { j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1) };
  const decide = { a: "accept", x: "remove", c: "change", f: "flip", e: "evidence" };
  const tool = { n: "add", u: "undo", r: "redo", d: "done", "?": "help" };
  function typing(target) {
    return target.closest("input, select, textarea, dialog, summary") !== null;
  }
  document.addEventListener("keydown", (event) => {
    if (typing(event.target)) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      return event.shiftKey ? tools.redo() : tools.undo();
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // Letters act in the desk and the text alone, so that they are free for a screen reader elsewhere.
    if (!desk.contains(event.target) && !event.target.closest(".text-panel") && event.target !== document.body) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (marking && markKey(key, event)) return event.preventDefault();
    if (/^[1-9]$/.test(key)) { event.preventDefault(); return toggle(Number(key) - 1); }
    if (keys[key]) { event.preventDefault(); return keys[key](); }
    if (tool[key]) { event.preventDefault(); return tools[tool[key]](); }
    if (key === "[" || key === "]") return document.getElementById(key === "[" ? "previous" : "next")?.click();
    const one = card();
    if (!decide[key] || !one) return;
    event.preventDefault();
    const next = cards()[cards().indexOf(one) + 1];
    acts[decide[key]](one);
    if (next && (key === "a" || key === "x")) go(next);
  });
  function markKey(key, event) {
    const buttons = [...sentences.querySelectorAll(".mark")];
    const at = buttons.indexOf(document.activeElement);
    if (key === "ArrowDown" || key === "j") buttons[Math.min(at + 1, buttons.length - 1)].focus();
    else if (key === "ArrowUp" || key === "k") buttons[Math.max(at - 1, 0)].focus();
    else if (key === "Escape" || key === "e") { marking = false; paint(); card()?.focus(); }
    else if ((key === " " || key === "Enter") && at >= 0) toggle(at);
    else return false;
    return true;
  }

  // ---- dialogs
  document.querySelectorAll("[data-filter]").forEach((input) => {
    input.addEventListener("input", () => filter(input));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown") return;
      event.preventDefault();
      document.getElementById(input.dataset.filter).focus();
    });
  });
  document.querySelectorAll("dialog select").forEach((select) => {
    select.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); select.form.requestSubmit(); }
    });
  });
  document.getElementById("change-form").addEventListener("submit", () => {
    const one = card();
    const chosen = document.getElementById("change-relation").value;
    if (one && chosen && chosen !== one.dataset.relation) send("retag", { ...fields(one), new_relation: chosen });
  });
  document.getElementById("add-form").addEventListener("submit", (event) => {
    const { head, relation, tail } = Object.fromEntries(new FormData(event.target));
    const error = document.getElementById("add-error");
    error.hidden = head !== tail;
    if (head === tail) return event.preventDefault();
    picked = null;
    awaited = `${head}|${relation}|${tail}`;
    const source = [head, tail].sort().join("|") === asked ? "question" : "human";
    send("add", { head, relation, tail, evidence: "", source });
  });
  for (const name of ["add", "change", "help"]) {
    const dialog = document.getElementById(name);
    document.getElementById(`${name}-cancel`)?.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => { asked = null; paint(); (card() || cards()[0])?.focus({ preventScroll: true }); });
  }

  addEventListener("beforeunload", (event) => { if (queue.length) event.preventDefault(); });
  setInterval(poll, 3000);
  try { queue = JSON.parse(sessionStorage.getItem(kept) || "[]"); } catch { queue = []; }
  go(cards().find((one) => one.dataset.status === "open") || cards()[0]);
  pump();
})();

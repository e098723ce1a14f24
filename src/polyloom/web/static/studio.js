// A browser opens few connections to one server: a hidden page gives its stream of events back, and asks anew when it is seen.
"use strict";

let paused = false;

document.addEventListener("visibilitychange", () => {
  const streams = document.querySelectorAll("[sse-connect]");
  if (document.hidden && streams.length > 0) {
    streams.forEach((stream) => htmx.trigger(stream, "htmx:beforeCleanupElement"));
    paused = true;
  } else if (!document.hidden && paused) {
    paused = false;
    htmx.ajax("GET", location.href, { target: "#content", select: "#content", swap: "outerHTML" });
  }
});

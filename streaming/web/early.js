// Runs before the modules and in old browsers too: a page that cannot start says so, instead of lying there dead.

(function () {
  var ready = false;
  var why = "";

  function show() {
    var box = document.getElementById("not-started");
    if (!box || !why || /[?&]quiet\b/.test(location.search)) return;
    box.hidden = ready;
    box.querySelector("small").textContent = ready ? "" : why;
  }

  function fail(reason) {
    if (ready) return;
    why = why || String(reason);
    show();
  }

  // A script that does not load tells only its element, so the window listens on the way down; pictures are not meant.
  addEventListener("error", function (event) {
    if (event.target !== window && event.target.tagName !== "SCRIPT") return;
    fail(event.message || "A part of the page did not load.");
  }, true);
  addEventListener("unhandledrejection", function (event) {
    fail((event.reason && event.reason.message) || event.reason);
  });
  addEventListener("DOMContentLoaded", show);
  addEventListener("load", function () {
    fail("This browser does not run the page's scripts.");
  });

  /** The page has started: later errors are its own to tell. */
  window.pageStarted = function () {
    ready = true;
    show();
  };
})();

// Keeps an open page as it is now. Without it the page reloads itself.
"use strict";
(() => {
  const live = document.body.dataset.live;
  const offline = document.getElementById("offline");
  const updated = document.getElementById("updated");
  // The server says something every few seconds: longer silence than this is a broken connection.
  const silence = 12000;
  let source, watchdog, retry;
  let title = document.title;

  // become makes an element like another one and leaves alone what is the same, so that focus, a selection and what somebody
  // unfolded stay.
  function become(old, now) {
    if (old.isEqualNode(now)) return;
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || old.id !== now.id) {
      old.replaceWith(now);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
      return;
    }
    for (const a of [...old.attributes]) {
      if (!now.hasAttribute(a.name) && !(old.nodeName === "DETAILS" && a.name === "open")) old.removeAttribute(a.name);
    }
    for (const a of now.attributes) {
      if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
    }
    children(old, now);
  }

  function children(old, now) {
    const byID = new Map();
    for (const c of old.children) if (c.id) byID.set(c.id, c);
    let at = old.firstChild;
    for (const want of [...now.childNodes]) {
      while (at && at.nodeType === Node.TEXT_NODE && want.nodeType !== Node.TEXT_NODE) at = drop(at);
      const same = want.id ? byID.get(want.id) : at && !at.id && at.nodeName === want.nodeName ? at : null;
      if (!same) {
        old.insertBefore(want, at);
        continue;
      }
      if (same === at) at = at.nextSibling;
      else move(old, same, at);
      become(same, want);
    }
    while (at) at = drop(at);
  }

  function drop(node) {
    const next = node.nextSibling;
    node.remove();
    return next;
  }

  // move puts an element elsewhere and gives it back the focus that it loses by that.
  function move(parent, node, before) {
    const focused = node.contains(document.activeElement) ? document.activeElement : null;
    parent.insertBefore(node, before);
    if (focused) focused.focus({ preventScroll: true });
  }

  function heard() {
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, silence);
    if (!offline.hidden) {
      offline.hidden = true;
      document.title = title;
    }
  }

  // quiet ends what is under way: nothing of it may speak for a later connection.
  function quiet() {
    clearTimeout(watchdog);
    clearTimeout(retry);
    if (source) source.close();
  }

  function lost() {
    offline.hidden = false;
    document.title = "✖ " + offline.textContent.trim().replace(/^✖\s*/, "");
    quiet();
    retry = setTimeout(connect, 1000 + 2000 * Math.random());
  }

  function connect() {
    quiet();
    source = new EventSource(live);
    watchdog = setTimeout(lost, silence);
    source.addEventListener("part", (e) => {
      heard();
      const end = e.data.indexOf("\n");
      const part = document.getElementById("part-" + e.data.slice(0, end));
      if (!part) return;
      const now = document.createElement("div");
      now.innerHTML = e.data.slice(end + 1);
      children(part, now);
    });
    source.addEventListener("now", (e) => {
      heard();
      const said = JSON.parse(e.data);
      updated.textContent = said.at;
      updated.dateTime = said.machine;
      title = said.title;
      if (document.title !== title) document.title = title;
    });
    // After an upgrade the server's style sheet and script are others.
    source.addEventListener("build", (e) => { if (e.data !== document.querySelector("script").src.split("/").pop()) location.reload(); });
    // Too many pages are open for this one to stay connected: what it was sent is of now, and it asks again.
    source.addEventListener("again", (e) => {
      quiet();
      retry = setTimeout(connect, Number(e.data) * (1 + Math.random() / 5));
    });
    source.onerror = lost;
  }

  connect();
  addEventListener("pagehide", quiet);
  addEventListener("pageshow", (e) => { if (e.persisted) connect(); });
})();

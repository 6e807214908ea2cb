"use strict";

/* Which view is shown, the theme, and the keyboard. */

(() => {
  const { h } = refold;
  const views = ["overview", "network", "weights"];

  /* -- views: the part of the address after #, such as #network or #network:after:12 */

  const show = (name) => {
    for (const view of views) {
      document.getElementById(view).hidden = view !== name;
      document.getElementById(`tab-${view}`).setAttribute("aria-selected", view === name);
    }
    if (document.body.dataset.view !== name) scrollTo(0, 0);
    document.body.dataset.view = name;
    if (name === "network") refold.showNetwork();
  };
  refold.show = (name) => {
    show(name);
    write();
  };
  const write = () => {
    const view = document.body.dataset.view;
    const chosen = refold.selected && view === "network" ? `:${refold.selected.side}:${refold.selected.id}` : "";
    history.replaceState(null, "", `#${view}${chosen}`);
  };
  const read = () => {
    const [name, side, id] = location.hash.slice(1).split(":");
    show(views.includes(name) ? name : "overview");
    const isBox = refold.sides.includes(side) && refold.facts[side].boxes[Number(id)];
    if (isBox) refold.select({ side, id: Number(id) }, { move: true });
  };
  refold.listeners.push(write);
  addEventListener("hashchange", read);

  /* -- light and dark */

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const wanted = refold.store("theme");
    const theme = wanted === "light" || wanted === "dark" ? wanted : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    refold.redraw.forEach((redraw) => redraw());
  };
  const turn = () => {
    refold.store("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    paint();
  };
  dark.addEventListener("change", paint);
  document.getElementById("theme").addEventListener("click", turn);

  /* -- keyboard */

  const help = document.getElementById("help");
  const keys = [
    ["1 2 3", "overview, network, weights"], ["/", "search layers; Enter goes to the next"],
    ["← ↑ ↓ →", "walk along the network, and across to the other side"],
    ["+ −", "zoom"], ["0", "the whole network"], ["h", "from the top"], ["t", "light or dark"],
    ["Esc", "choose nothing"], ["?", "this list"],
  ];
  help.append(
    h("h2", {}, "Keyboard"),
    h("dl", {}, keys.map(([key, meaning]) => [h("dt", {}, key.split(" ").map((one) => h("kbd", {}, one))), h("dd", {}, meaning)])),
    h("form", { method: "dialog" }, h("button", { class: "quiet" }, "Close")));
  const ask = () => (help.open ? help.close() : help.showModal());
  document.getElementById("help-button").addEventListener("click", ask);

  const actions = {
    1: () => refold.show("overview"), 2: () => refold.show("network"), 3: () => refold.show("weights"),
    "/": () => { refold.show("network"); document.getElementById("search").focus(); },
    "+": () => refold.zoom(1.3), "=": () => refold.zoom(1.3), "-": () => refold.zoom(1 / 1.3),
    0: () => refold.whole(), h: () => refold.home(), t: turn, "?": ask, Escape: () => refold.select(null),
  };
  const onNetwork = new Set(["+", "=", "-", "0", "h", "Escape"]);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open && event.key !== "?") return;
    if (event.target instanceof HTMLInputElement) return;
    const isNetwork = document.body.dataset.view === "network";
    const walked = isNetwork && !event.target.closest(".detail") && refold.walk(event.key);
    const action = actions[event.key];
    if (!walked && (!action || (onNetwork.has(event.key) && !isNetwork))) return;
    event.preventDefault();
    if (!walked) action();
  });

  paint();
  read();
})();

"use strict";

/* The network: both graphs in one plane, with a ribbon from the branches to what they became. */

(() => {
  const { h, s, facts, plural } = refold;
  const root = document.getElementById("network");
  const NAMES = { before: "Before", after: "After" };

  /* -- the plane: what is drawn, and how it is looked at */

  const plane = s("g", { class: "plane" });
  const picture = s("svg", { class: "graph", role: "application", tabindex: 0, "aria-label": "The network before and after. Arrow keys walk along it." }, plane);
  const views = { k: 1, x: 0, y: 0 };
  let place = null; // the layout
  const nodes = { before: [], after: [] };
  const edges = [];
  const ribbons = new Map();

  const apply = () => {
    plane.setAttribute("transform", `translate(${views.x} ${views.y}) scale(${views.k})`);
    picture.classList.toggle("far", views.k < 0.6);
    picture.classList.toggle("farther", views.k < 0.28);
    drawWindow();
  };

  const frame = () => picture.getBoundingClientRect();

  const clamp = () => {
    const { width, height } = frame();
    views.k = Math.min(2.5, Math.max(0.02, views.k));
    const [left, right, top, bottom] = [place.left, place.right, place.top, place.bottom].map((value) => value * views.k);
    views.x = Math.min(width - left - 60, Math.max(60 - right, views.x));
    views.y = Math.min(height - top - 60, Math.max(60 - bottom, views.y));
  };

  const look = (change) => {
    Object.assign(views, change);
    clamp();
    apply();
  };

  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let moving = null; // the move that is under way: its next frame and where it ends

  /** End a move at once: what a hand does comes on top of it. */
  const settle = () => {
    if (!moving) return;
    cancelAnimationFrame(moving.next);
    const { goal } = moving;
    moving = null;
    look(goal);
  };

  const glide = (goal) => {
    settle();
    if (calm.matches || document.hidden) return look(goal);
    const [start, from] = [performance.now(), { ...views }];
    const step = (now) => {
      const t = Math.min(1, Math.max(0, now - start) / 240);
      const ease = 1 - (1 - t) ** 3;
      look(Object.fromEntries(Object.keys(goal).map((key) => [key, from[key] + (goal[key] - from[key]) * ease])));
      moving = t < 1 ? { goal, next: requestAnimationFrame(step) } : null;
    };
    moving = { goal, next: requestAnimationFrame(step) };
    return undefined;
  };

  const zoom = (factor, at = null) => {
    settle();
    const { width, height } = frame();
    const { x, y } = at || { x: width / 2, y: height / 2 };
    const k = Math.min(2.5, Math.max(0.02, views.k * factor));
    look({ k, x: x - ((x - views.x) * k) / views.k, y: y - ((y - views.y) * k) / views.k });
  };

  /** What the map leaves free. */
  const room = () => ({ width: frame().width - 84, height: frame().height });

  /** The scale at which both columns fit, as long as names can be read. */
  const fitting = () => Math.min(1.1, Math.max(0.3, (room().width - 90) / (place.right - place.left)));

  /** Show both columns from the top, as large as they fit. */
  const home = () => {
    settle();
    const k = fitting();
    look({ k, x: (room().width - (place.left + place.right) * k) / 2, y: 64 - place.top * k });
  };

  const whole = () => {
    const { width, height } = room();
    const k = Math.min(1, fitting(), (height - 80) / (place.bottom - place.top));
    glide({ k, x: (width - (place.left + place.right) * k) / 2, y: 64 - place.top * k });
  };

  /** Bring a box into the middle: with all of its row where that fits, else with its partner. */
  const centre = ({ side, id }) => {
    const { width, height } = room();
    const k = Math.max(views.k, Math.min(0.75, fitting()));
    const spots = [place[side].nodes[id]];
    const partner = refold.partner({ side, id });
    if (partner) spots.push(place[partner.side].nodes[partner.id]);
    const spans = [
      [place.left, place.right],
      [Math.min(...spots.map((spot) => spot.x - spot.width)), Math.max(...spots.map((spot) => spot.x + spot.width))],
    ];
    const [left, right] = spans.find(([from, to]) => (to - from) * k < width) || [spots[0].x, spots[0].x];
    glide({ k, x: (width - (left + right) * k) / 2, y: height * 0.46 - spots[0].y * k });
  };

  /* -- drawing */

  const edge = ({ from, to, points }, column) => {
    const [a, b] = [column.nodes[from], column.nodes[to]];
    const start = { x: a.x, y: a.y + a.height / 2 };
    const end = { x: b.x, y: b.y - b.height / 2 };
    const stops = [start, ...points, end];
    let path = `M${start.x} ${start.y}`;
    for (let at = 1; at < stops.length; at += 1) {
      const [p, q] = [stops[at - 1], stops[at]];
      const bend = (q.y - p.y) / 2;
      path += p.x === q.x ? `V${q.y}` : `C${p.x} ${p.y + bend} ${q.x} ${q.y - bend} ${q.x} ${q.y}`;
    }
    return path;
  };

  const box = (side, id) => {
    const [data, spot] = [facts[side].boxes[id], place[side].nodes[id]];
    const wide = spot.height > 30;
    const kept = refold.kept[side].get(id);
    const classes = ["box", data.kind, side, wide ? "layer" : "pill"];
    if (refold.isChanged(side, id)) classes.push("changed");
    if (kept) classes.push(kept.every((item) => item.costlier) ? "kept costlier" : "kept");
    if (data.gone) classes.push("gone");
    const branch = side === "before" ? refold.branch.get(id) : undefined;
    const most = Math.floor((spot.width - 18) / 5.75);
    const element = s("g", {
      class: classes.join(" "), tabindex: -1, role: "button", "data-side": side, "data-id": id,
      "aria-label": `${NAMES[side]}: ${data.title} ${data.place}`,
      transform: `translate(${spot.x} ${spot.y})`, style: branch === undefined ? {} : { "--own": `var(--branch-${branch % 6})` },
    },
    s("rect", { class: "body", x: -spot.width / 2, y: -spot.height / 2, width: spot.width, height: spot.height, rx: wide ? 8 : spot.height / 2 }),
    branch !== undefined && wide && s("rect", { class: "own", x: -spot.width / 2, y: -spot.height / 2 + 8, width: 3, height: spot.height - 16, rx: 1.5 }),
    s("text", { class: "title", y: wide ? -4 : 4 }, wide ? refold.tail(data.title, 24) : data.title),
    wide && s("text", { class: "place", y: 12 }, refold.tail(data.place, most)),
    kept && s("circle", { class: "mark", cx: spot.width / 2 - 3, cy: -spot.height / 2 + 3, r: 4.5 }),
    s("title", {}, `${data.title}\n${data.place}${data.detail ? `\n${data.detail}` : ""}${data.shape ? `\n${data.shape}` : ""}`));
    return element;
  };

  /** The outline of the boxes that became one, and the ribbon to what they became. */
  const ribbon = (id) => {
    const sources = (facts.after.boxes[id].from || []).map((source) => place.before.nodes[source]);
    if (!refold.isChanged("after", id) || !sources.length) return null;
    const left = Math.min(...sources.map((n) => n.x - n.width / 2)) - 9;
    const right = Math.max(...sources.map((n) => n.x + n.width / 2)) + 9;
    const top = Math.min(...sources.map((n) => n.y - n.height / 2)) - 8;
    const bottom = Math.max(...sources.map((n) => n.y + n.height / 2)) + 8;
    const goal = place.after.nodes[id];
    const [x, up, low] = [goal.x - goal.width / 2, goal.y - goal.height / 2, goal.y + goal.height / 2];
    const bend = (x - right) / 2;
    return s("g", { class: "ribbon", "data-id": id },
      s("rect", { x: left, y: top, width: right - left, height: bottom - top, rx: 12 }),
      s("path", { d: `M${right} ${top + 10}C${right + bend} ${top + 10} ${x - bend} ${up + 3} ${x} ${up + 3}V${low - 3}C${x - bend} ${low - 3} ${right + bend} ${bottom - 10} ${right} ${bottom - 10}Z` }));
  };

  const stageLines = () => facts.stages.map((name, stage) => {
    const ys = refold.sides.flatMap((side) => facts[side].boxes.map((data, id) => (data.stage === stage ? place[side].nodes[id].y - place[side].nodes[id].height / 2 : null))).filter((y) => y !== null);
    if (!ys.length) return null;
    const y = Math.min(...ys) - 12;
    return s("g", { class: "stage-line" },
      s("line", { x1: place.left - 20, x2: place.right + 20, y1: y, y2: y }),
      s("text", { x: place.left - 20, y: y - 5 }, name));
  });

  const draw = () => {
    place = refold.layout(facts.before.boxes, facts.after.boxes);
    const layers = { ribbons: s("g"), edges: s("g"), boxes: s("g") };
    facts.after.boxes.forEach((_, id) => {
      const element = ribbon(id);
      if (!element) return;
      ribbons.set(id, element);
      layers.ribbons.append(element);
    });
    for (const side of refold.sides) {
      place[side].edges.forEach((line) => {
        const element = s("path", { class: `edge ${side}`, d: edge(line, place[side]) });
        edges.push({ side, from: line.from, to: line.to, element });
        layers.edges.append(element);
      });
      facts[side].boxes.forEach((_, id) => {
        nodes[side][id] = box(side, id);
        layers.boxes.append(nodes[side][id]);
      });
    }
    plane.append(s("g", {}, stageLines()), layers.ribbons, layers.edges, layers.boxes);
  };

  /* -- the map beside it */

  const map = h("canvas", { class: "map", "aria-hidden": "true" });
  const windowMark = h("div", { class: "window" });
  const mapBox = h("div", { class: "mapbox" }, map, windowMark);
  const drawMap = () => {
    if (!place || root.hidden) return;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [mapBox.clientWidth, mapBox.clientHeight];
    [map.width, map.height] = [width * ratio, height * ratio];
    const pen = map.getContext("2d");
    pen.scale(ratio, ratio);
    const down = (height - 8) / (place.bottom - place.top);
    const across = (width - 8) / (place.right - place.left);
    for (const side of refold.sides) {
      pen.fillStyle = refold.colour(`--${side}`);
      facts[side].boxes.forEach((data, id) => {
        const spot = place[side].nodes[id];
        pen.globalAlpha = data.weight || data.parameters ? 0.85 : 0.3;
        if (refold.kept[side].has(id)) pen.fillStyle = refold.colour("--kept");
        pen.fillRect(4 + (spot.x - spot.width / 2 - place.left) * across, 4 + (spot.y - spot.height / 2 - place.top) * down,
          Math.max(2, spot.width * across), Math.max(1, spot.height * down - 0.5));
        pen.fillStyle = refold.colour(`--${side}`);
      });
    }
    drawWindow();
  };

  const drawWindow = () => {
    if (!place) return;
    const { height } = frame();
    const down = (mapBox.clientHeight - 8) / (place.bottom - place.top);
    const top = 4 + (-views.y / views.k - place.top) * down;
    windowMark.style.top = `${Math.max(0, top)}px`;
    windowMark.style.height = `${Math.max(6, Math.min(mapBox.clientHeight - Math.max(0, top), (height / views.k) * down + Math.min(0, top)))}px`;
  };

  const jump = (event) => {
    settle();
    const { top } = mapBox.getBoundingClientRect();
    const down = (mapBox.clientHeight - 8) / (place.bottom - place.top);
    look({ y: frame().height / 2 - (place.top + (event.clientY - top - 4) / down) * views.k });
  };
  mapBox.addEventListener("pointerdown", (event) => { mapBox.setPointerCapture(event.pointerId); jump(event); });
  mapBox.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });

  /* -- pointer */

  let grip = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    settle();
    grip = { x: event.clientX, y: event.clientY, from: { ...views }, far: false };
  });
  addEventListener("pointermove", (event) => {
    if (!grip) return;
    const [dx, dy] = [event.clientX - grip.x, event.clientY - grip.y];
    grip.far ||= Math.hypot(dx, dy) > 4;
    if (grip.far) {
      picture.classList.add("dragged");
      look({ x: grip.from.x + dx, y: grip.from.y + dy });
    }
  });
  addEventListener("pointerup", () => {
    setTimeout(() => { grip = null; });
    picture.classList.remove("dragged");
  });
  picture.addEventListener("click", (event) => {
    if (grip && grip.far) return;
    const target = event.target.closest(".box, .ribbon");
    if (!target) return refold.select(null);
    return refold.select({ side: target.dataset.side || "after", id: Number(target.dataset.id) });
  });
  picture.addEventListener("wheel", (event) => {
    event.preventDefault();
    settle();
    const unit = event.deltaMode === 1 ? 18 : 1;
    const { left, top } = frame();
    if (event.ctrlKey || event.metaKey) {
      zoom(Math.exp(-event.deltaY * unit * 0.004), { x: event.clientX - left, y: event.clientY - top });
    } else {
      const [dx, dy] = event.shiftKey ? [event.deltaY, 0] : [event.deltaX, event.deltaY];
      look({ x: views.x - dx * unit, y: views.y - dy * unit });
    }
  }, { passive: false });

  /* -- keyboard: along the edges, and across to the other side */

  const readers = {};
  for (const side of refold.sides) {
    readers[side] = facts[side].boxes.map(() => []);
    facts[side].boxes.forEach((data, id) => data.reads.forEach((source) => readers[side][source].push(id)));
  }

  const across = (target, name) => (target.side === name ? null : refold.partner(target));
  const beside = (target, step) => {
    const { side, id } = target;
    const above = facts[side].boxes[id].reads[0];
    const row = above === undefined ? [id] : readers[side][above];
    const sorted = [...row].sort((one, other) => place[side].nodes[one].x - place[side].nodes[other].x);
    const next = sorted[sorted.indexOf(id) + step];
    return next === undefined ? null : { side, id: next };
  };
  const along = ({ side, id }, down) => {
    const next = down ? readers[side][id][0] : facts[side].boxes[id].reads[0];
    return next === undefined ? null : { side, id: next };
  };
  const moves = {
    ArrowDown: (target) => along(target, true),
    ArrowUp: (target) => along(target, false),
    ArrowLeft: (target) => beside(target, -1) || across(target, "before"),
    ArrowRight: (target) => beside(target, 1) || across(target, "after"),
  };
  refold.walk = (key) => {
    if (!moves[key]) return false;
    const next = refold.selected ? moves[key](refold.selected) : { side: "before", id: 0 };
    if (next) refold.select(next, { move: true });
    return true;
  };
  Object.assign(refold, { zoom, home, whole });

  /* -- search */

  const field = h("input", { type: "search", id: "search", placeholder: "Search layers", "aria-label": "Search layers", autocomplete: "off", spellcheck: "false" });
  const found = h("span", { class: "found", role: "status" });
  let hits = [];
  let at = -1;

  const tests = {
    "is:folded": (side, id) => refold.isChanged(side, id),
    "is:kept": (side, id) => refold.kept[side].has(id),
    "is:dropped": (side, id) => facts[side].boxes[id].gone !== undefined,
  };
  const matches = (side, id, words) => {
    const data = facts[side].boxes[id];
    const text = `${data.place} ${data.title} ${data.detail} ${data.kind}`.toLowerCase();
    return words.every((word) => (tests[word] ? tests[word](side, id) : text.includes(word)));
  };
  refold.search = (text) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    at = -1;
    hits = !words.length ? [] : refold.sides.flatMap((side) =>
      facts[side].boxes.map((_, id) => ({ side, id })).filter(({ id }) => matches(side, id, words)));
    const chosen = new Set(hits.map(({ side, id }) => nodes[side][id]));
    for (const side of refold.sides) nodes[side].forEach((element) => element.classList.toggle("hit", chosen.has(element)));
    picture.classList.toggle("searching", words.length > 0);
    found.textContent = !words.length ? "" : hits.length ? `${hits.length} found` : "nothing found";
    chips.forEach((chip) => chip.setAttribute("aria-pressed", chip.dataset.query === text));
  };
  const next = (step) => {
    if (!hits.length) return;
    at = (at + step + hits.length) % hits.length;
    found.textContent = `${at + 1} of ${hits.length}`;
    refold.select(hits[at], { move: true, focus: false }); // the next Enter goes on
  };
  field.addEventListener("input", () => refold.search(field.value));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") next(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") { field.value = ""; refold.search(""); picture.focus(); }
    if (event.key !== "Tab") event.stopPropagation();
  });

  const number = (query) => refold.sides.reduce((sum, side) => sum + facts[side].boxes.filter((_, id) => tests[query](side, id)).length, 0);
  const chips = [["is:folded", facts.verb === "folded" ? "folded" : "changed"], ["is:kept", "kept"], ["is:dropped", "dropped"]].filter(([query]) => number(query)).map(([query, label]) =>
    h("button", { type: "button", class: `filter ${label}`, "data-query": query, "aria-pressed": "false", onclick: () => {
      field.value = field.value === query ? "" : query;
      refold.search(field.value);
      next(1);
    } }, h("i"), label));

  /* -- selection */

  const light = (target) => {
    root.querySelectorAll(".selected, .partner, .lit").forEach((element) => element.classList.remove("selected", "partner", "lit"));
    if (!target) return;
    const own = nodes[target.side][target.id];
    own.classList.add("selected");
    const owner = target.side === "after" ? target.id : refold.owner.get(target.id);
    if (owner !== undefined) {
      if (ribbons.has(owner)) ribbons.get(owner).classList.add("lit");
      if (target.side === "before") nodes.after[owner].classList.add("partner");
      (facts.after.boxes[owner].from || []).forEach((source) => { if (nodes.before[source] !== own) nodes.before[source].classList.add("partner"); });
    }
    edges.forEach(({ side, from, to, element }) => {
      if (side === target.side && (from === target.id || to === target.id)) element.classList.add("lit");
    });
  };
  refold.listeners.push((target, { move = false, focus = true }) => {
    light(target);
    if (!target || !move || root.hidden) return;
    centre(target);
    if (focus) nodes[target.side][target.id].focus({ preventScroll: true });
  });

  /* -- the view */

  const heading = (side) => h("span", { class: `column ${side}` }, h("b", {}, NAMES[side]), ` ${plural(facts[side].steps, "step")}`);
  const tool = (label, title, action) => h("button", { type: "button", class: "quiet", title, "aria-label": title, onclick: action }, label);
  const panel = h("aside", { class: "detail", id: "detail", "aria-live": "polite", "aria-label": "The chosen layer" });
  root.append(
    h("div", { class: "stage-area" },
      h("div", { class: "tools" },
        h("label", { class: "search" }, field, found), chips,
        h("span", { class: "grow" }), heading("before"), h("span", { class: "arrow" }, "→"), heading("after"),
        h("span", { class: "grow" }),
        tool("−", "Zoom out (−)", () => zoom(1 / 1.3)), tool("+", "Zoom in (+)", () => zoom(1.3)),
        tool("⤢", "The whole network (0)", whole), tool("⌂", "From the top (h)", home)),
      picture, mapBox),
    panel);

  refold.redraw.push(drawMap);
  let ready = false;
  refold.showNetwork = () => {
    if (!ready) {
      ready = true;
      draw();
      home();
      light(refold.selected);
    }
    drawMap();
  };
  new ResizeObserver(() => { if (ready && !root.hidden) { look({}); drawMap(); } }).observe(picture);
})();

"use strict";

/* The panel beside the network: one layer, the branches that became it, and how exact it is. */

(() => {
  const { h, facts, count, digits, tiny, change } = refold;
  const panel = document.getElementById("detail");

  /* -- pictures of kernels */

  const bytes = (text) => Int8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  const mix = (from, to, share) => from.map((value, channel) => Math.round(value + (to[channel] - value) * share));

  const rgb = (name) => {
    const text = refold.colour(name).replace("#", "");
    return [0, 2, 4].map((at) => parseInt(text.slice(at, at + 2), 16));
  };

  /** Draw kernels side by side: rows are output channels, columns are input channels. */
  const paint = (canvas, kernel, pixels) => {
    const [high, wide] = kernel.taps;
    const depthwise = kernel.columns === 1 && kernel.rows > 1;
    const columns = depthwise ? Math.ceil(Math.sqrt(kernel.rows)) : kernel.columns;
    const rows = depthwise ? Math.ceil(kernel.rows / columns) : kernel.rows;
    const zoom = Math.max(1, Math.floor(240 / Math.max(columns * (wide + 0.4), rows * (high + 0.4))));
    const gap = high * wide > 1 ? Math.max(1, Math.round(zoom / 3)) : 0;
    canvas.width = columns * wide * zoom + (columns - 1) * gap;
    canvas.height = rows * high * zoom + (rows - 1) * gap;
    const pen = canvas.getContext("2d");
    const [low, middle, top] = [rgb("--low"), rgb("--middle"), rgb("--top")];
    bytes(pixels).forEach((value, at) => {
      const tile = Math.floor(at / (high * wide));
      const [row, column] = [Math.floor(tile / columns), tile % columns];
      const [y, x] = [Math.floor((at % (high * wide)) / wide), at % wide];
      const share = (Math.abs(value) / 127) ** 0.5;
      pen.fillStyle = `rgb(${mix(middle, value < 0 ? low : top, share).join(" ")})`;
      pen.fillRect((column * wide + x) * zoom + column * gap, (row * high + y) * zoom + row * gap, zoom, zoom);
    });
  };

  const image = (kernel, pixels, label) => {
    const canvas = h("canvas", { class: "kernel", role: "img", "aria-label": label });
    paint(canvas, kernel, pixels);
    return canvas;
  };

  const caption = ({ rows, columns, taps, peak }) => {
    const size = `${taps.join("×")} each`;
    const channels = columns === 1 ? `${rows} channels` : `the first ${rows} outputs × ${columns} inputs`;
    return h("div", { class: "scale" },
      h("span", {}, digits(-peak)), h("i"), h("span", {}, digits(peak)),
      h("p", { class: "small" }, taps[0] * taps[1] > 1 ? `Kernels of ${channels}, ${size}.` : `Weights of ${channels}.`));
  };

  /* -- parts of the panel */

  const go = (side, id, label) =>
    h("button", { type: "button", class: "link", onclick: () => refold.select({ side, id }, { move: true }) }, label);

  const layer = (id, current) => {
    const box = facts.before.boxes[id];
    return h("li", { class: current ? "current" : "" }, go("before", id, [h("b", {}, box.title), refold.path(box.place)]));
  };

  const term = (operator, picture, content, own) =>
    h("div", { class: "term", style: own ? { "--own": own } : {} },
      h("span", { class: "op", "aria-hidden": "true" }, operator), picture || h("span", { class: "kernel none" }), h("div", { class: "words" }, content));

  const equation = (box, id, chosen) => {
    const branches = box.branches || [];
    const lines = branches.map((branch, number) => {
      const words = branch.boxes.length ? h("ol", {}, branch.boxes.map((one) => layer(one, chosen.side === "before" && chosen.id === one))) : h("p", { class: "soft" }, "identity");
      const name = branch.boxes.map((one) => facts.before.boxes[one].place).join(", ") || "identity";
      return term(number ? "+" : "", box.kernel && image(box.kernel, branch.pixels, `Kernel of ${name}`), words, `var(--branch-${number % 6})`);
    });
    if (!branches.length && (box.layers || []).length) {
      lines.push(term("", null, h("ol", {}, box.layers.map((one) => layer(one, chosen.side === "before" && chosen.id === one)))));
    }
    const result = [h("b", {}, box.title), refold.path(box.place)];
    if (box.kernel || lines.length) lines.push(term(branches.length ? "=" : lines.length ? "→" : "", box.kernel && image(box.kernel, box.kernel.pixels, `Kernel of ${box.place}`), go("after", id, result)));
    return lines;
  };

  const fact = (label, value, note) => value !== null && value !== undefined && value !== "" && [h("dt", {}, label), h("dd", {}, value, note && h("span", { class: "small" }, ` ${note}`))];

  const exactness = (box) => {
    if ((box.error ?? null) === null && box.rounding === undefined) return null;
    return h("dl", {},
      fact("Value in float64", box.error === null ? null : tiny(box.error), "largest difference from before, over its peak"),
      fact("Stored kernel", box.rounding === undefined ? null : tiny(box.rounding), `off the exact sum of its branches, rounded to ${facts.dtype}`));
  };

  const sum = (ids, key) => {
    const values = ids.map((id) => facts.before.boxes[id][key]).filter((value) => value !== null && value !== undefined);
    return values.length ? values.reduce((one, other) => one + other, 0) : null;
  };

  const pair = (was, is, write = count) => (was === is || was === null ? write(is) : [write(was), h("span", { class: "arrow" }, " → "), h("b", {}, write(is)), h("span", { class: is > was ? "change more" : "change" }, change(was, is))]);

  const some = (was, is) => (was || is ? pair(was, is) : null);

  const costs = (box, ids) => {
    const time = (value) => `${digits(value)} ms`;
    return h("dl", {},
      fact("Output", box.shape), fact("Layer", box.detail),
      fact("Parameters", some(sum(ids, "parameters"), box.parameters)),
      fact("Multiply-adds", box.macs === null ? null : some(sum(ids, "macs"), box.macs)),
      fact("Latency", box.ms === null ? null : pair(sum(ids, "ms"), box.ms, time)));
  };

  const numbers = (title, weight) => weight && h("div", { class: "numbers" },
    h("p", { class: "small" }, title), refold.histogram(weight, 300, 44),
    h("dl", {},
      fact("Range", `${digits(weight.low)} … ${digits(weight.high)}`, `σ ${digits(weight.deviation)}`),
      fact("Outliers", weight.outliers.toLocaleString("en"), `beyond 6 σ; largest is ${digits(weight.stretch)}× what 99.9 % stay below`),
      fact("Channel spread", `${digits(weight.spread)}×`, "largest channel over the median one")));

  const section = (title, ...content) => {
    const inside = content.flat(3).filter(Boolean);
    return inside.length > 0 && h("section", {}, h("h3", {}, title), inside);
  };

  const reasons = (side, id) => (refold.kept[side].get(id) || []).map((item) =>
    h("div", { class: item.costlier ? "callout costlier" : "callout" },
      h("b", {}, item.costlier ? "Kept: merging would cost more" : "Kept"), h("p", {}, item.reason), refold.path(item.place, "mono small")));

  const head = (side, box) => [
    h("p", { class: `eyebrow ${side}` }, side),
    h("h2", {}, box.title),
    h("p", { class: "path" }, refold.path(box.place)),
  ];

  /* -- the panel itself */

  const nothing = () => [
    h("h2", {}, "Choose a layer"),
    h("p", { class: "soft" }, "Click a layer, or walk with the arrow keys. It shows the branches that became it, their kernels and their sum, and how exact the fold is."),
    h("ul", { class: "hints" },
      h("li", {}, "Scroll to move, ", h("kbd", {}, "Ctrl"), " and scroll to zoom, drag to pan."),
      h("li", {}, h("kbd", {}, "/"), " searches; the buttons beside it show what was folded and what stayed.")),
    facts.recipes.length > 0 && section(facts.verb === "folded" ? "First folds" : "First changes", h("ul", { class: "plain" }, facts.recipes.slice(0, 5).map((recipe) =>
      h("li", {}, go("after", recipe.boxes[0], [h("b", {}, recipe.to), refold.path(facts.after.boxes[recipe.boxes[0]].place)]))))),
  ];

  const titleOf = (box, changed) => {
    if (!changed) return "Kernel";
    return (box.branches || []).length > 1 ? "Branches and their sum" : "What became it";
  };

  const result = (chosen, id) => {
    const box = facts.after.boxes[id];
    const changed = refold.isChanged("after", id);
    const ids = changed ? box.from : (box.from || []).slice(-1);
    return [
      section(titleOf(box, changed), equation(box, id, chosen), box.kernel && caption(box.kernel)),
      section("Exactness", exactness(box)),
      section("Cost", costs(box, ids)),
      section("Weights", numbers("after", box.weight),
        changed && ids.map((one) => numbers(facts.before.boxes[one].place, facts.before.boxes[one].weight))),
      changed && box.rules && box.rules.length > 0 && section("Rules", h("p", { class: "small mono" }, box.rules.join("; "))),
    ];
  };

  const alone = (box) => [
    box.gone && h("div", { class: "callout dropped" }, h("b", {}, "Dropped"), h("p", {}, box.gone)),
    section("Cost", costs(box, [])),
    section("Weights", numbers("before", box.weight)),
  ];

  const show = (chosen) => {
    if (!chosen) return panel.replaceChildren(...nothing().filter(Boolean));
    const box = refold.box(chosen);
    const id = chosen.side === "after" ? chosen.id : refold.owner.get(chosen.id);
    const below = id === undefined ? alone(box) : result(chosen, id);
    panel.replaceChildren(...[...head(chosen.side, box), ...reasons(chosen.side, chosen.id), ...below].flat(3).filter(Boolean));
    panel.scrollTop = 0;
    return undefined;
  };

  refold.listeners.push(show);
  refold.redraw.push(() => show(refold.selected));
  show(null);
})();

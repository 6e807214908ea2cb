"use strict";

/* The weights: range, outliers and spread of channels of every layer, before and after. */

(() => {
  const { h, s, facts, digits } = refold;
  const columns = [
    { key: "place", label: "Layer", of: (row) => row.id },
    { key: "range", label: "Range", of: (row) => row.weight.high - row.weight.low },
    { key: "histogram", label: "Histogram", of: null },
    { key: "deviation", label: "σ", of: (row) => row.weight.deviation, note: "standard deviation" },
    { key: "stretch", label: "Stretch", of: (row) => row.weight.stretch, note: "largest magnitude over the one that 99.9 % stay below: what a few numbers cost a quantizer" },
    { key: "spread", label: "Channel spread", of: (row) => row.weight.spread, note: "largest channel over the median channel: what one scale for all channels costs a quantizer" },
    { key: "outliers", label: "Beyond 6 σ", of: (row) => row.weight.outliers, note: "numbers further than six standard deviations from the mean" },
  ];
  let side = "after";
  let order = { key: "spread", down: true };

  refold.histogram = (weight, width = 132, height = 26) => {
    const step = width / weight.histogram.length;
    return s("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `from ${digits(weight.low)} to ${digits(weight.high)}` },
      s("line", { x1: width / 2, x2: width / 2, y1: 0, y2: height, class: "zero" }),
      weight.histogram.map((share, bin) => share > 0 &&
        s("rect", { x: bin * step + 0.25, y: height - Math.max(1, (share / 100) * height), width: step - 0.5, height: Math.max(1, (share / 100) * height) })));
  };

  const rangeBar = (weight, most) => {
    const at = (value) => 50 + (50 * value) / most;
    const part = (name, low, high) => h("i", { class: name, style: { left: `${at(low)}%`, width: `${Math.max(0.6, at(high) - at(low))}%` } });
    return h("span", { class: "range", title: `${digits(weight.low)} to ${digits(weight.high)}; 99.9 % within ±${digits(weight.bulk)}` },
      h("i", { class: "zero" }), part("all", weight.low, weight.high),
      part("bulk", Math.max(weight.low, -weight.bulk), Math.min(weight.high, weight.bulk)));
  };

  const heat = (value, from, to) => {
    const level = Math.min(1, Math.max(0, Math.log(value / from) / Math.log(to / from)));
    return h("span", { class: "heat", style: { "--level": `${Math.round(100 * level)}%` } }, `${digits(value)}×`);
  };

  const rows = () =>
    facts[side].boxes.map((box, id) => ({ ...box, id })).filter((row) => row.weight);

  const draw = () => {
    const column = columns.find(({ key }) => key === order.key);
    const sorted = rows().sort((one, other) => (column.of(one) - column.of(other)) * (order.down ? -1 : 1) || one.id - other.id);
    const most = Math.max(1e-30, ...sorted.map(({ weight }) => Math.max(-weight.low, weight.high)));
    body.replaceChildren(...sorted.map((row) =>
      h("tr", { "data-side": side, "data-id": row.id },
        h("td", {}, h("button", { type: "button", class: "link", onclick: () => refold.open(side, row.id) },
          refold.path(refold.tail(row.place, 44)), h("span", { class: "small" }, ` ${row.title}`))),
        h("td", {}, rangeBar(row.weight, most)),
        h("td", {}, refold.histogram(row.weight)),
        h("td", { class: "number" }, digits(row.weight.deviation)),
        h("td", { class: "number" }, heat(row.weight.stretch, 1.2, 8)),
        h("td", { class: "number" }, heat(row.weight.spread, 1.5, 20)),
        h("td", { class: "number" }, row.weight.outliers.toLocaleString("en")))));
    heads.forEach((head) => head.setAttribute("aria-sort", head.dataset.key === order.key ? (order.down ? "descending" : "ascending") : "none"));
    choices.forEach((button) => button.setAttribute("aria-pressed", button.dataset.side === side));
  };

  const sort = (key) => {
    order = { key, down: order.key === key ? !order.down : key !== "place" };
    draw();
  };

  const heads = columns.map(({ key, label, of, note }) =>
    h("th", { "data-key": key, scope: "col", title: note }, of ? h("button", { type: "button", onclick: () => sort(key) }, label) : label));
  const choices = refold.sides.map((name) =>
    h("button", { type: "button", "data-side": name, onclick: () => { side = name; draw(); } }, name === "before" ? "Before" : "After"));
  const body = h("tbody");

  const median = (name) => {
    const found = facts[name].boxes.filter((box) => box.weight).map((box) => box.weight.spread).sort((a, b) => a - b);
    return found.length ? found[Math.floor(found.length / 2)] : null;
  };

  const summary = () => {
    const [was, is] = [median("before"), median("after")];
    const widest = rows().sort((one, other) => other.weight.spread - one.weight.spread)[0];
    if (!widest) return h("p", { class: "lead" }, "No layer has a weight of two axes or more.");
    return h("p", { class: "lead" },
      `The largest channel of a layer is ${digits(is)}× its median channel (${digits(was)}× before), in the median layer. `,
      "Widest: ", h("button", { type: "button", class: "link", onclick: () => refold.open("after", widest.id) }, refold.path(widest.place)),
      `, ${digits(widest.weight.spread)}×.`);
  };

  document.getElementById("weights").append(
    h("div", { class: "page wide" },
      h("div", { class: "hero" }, h("h1", {}, "Weights"), summary(),
        h("p", { class: "soft" }, "Folding a norm scales every channel of a kernel by its own factor, so channels drift apart: quantize per channel where the spread is large.")),
      h("div", { class: "card" },
        h("div", { class: "head" }, h("h2", {}, "Range and outliers by layer"), h("div", { class: "choice" }, choices)),
        h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), body)))));
  draw();
})();

"use strict";

/* What every view uses: the facts, elements, numbers as text, colours, and what is selected. */

const refold = {
  facts: JSON.parse(document.getElementById("facts").textContent),
  sides: ["before", "after"],
};

/** Make an element. Text is text: no name in a network can become markup. */
refold.h = (tag, attributes = {}, ...children) =>
  refold.fill(document.createElement(tag), attributes, children);

/** Make an SVG element. */
refold.s = (tag, attributes = {}, ...children) =>
  refold.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

refold.fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

/** A large number in few characters: 9108968 is 9.11 M. */
refold.count = (value) => {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${refold.digits(value / size)} ${unit}`;
  }
  return refold.digits(value);
};

refold.bytes = (value) => {
  for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= size) return `${refold.digits(value / size)} ${unit}`;
  }
  return `${value} B`;
};

refold.digits = (value) => {
  if (Number.isInteger(value) && Math.abs(value) < 1e4) return String(value);
  const size = Math.abs(value);
  if (size >= 1) return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
  return size >= 0.001 ? value.toPrecision(2) : value.toExponential(1);
};

/** A tiny number: 3.1e-14 is 3.1 × 10⁻¹⁴. */
refold.tiny = (value) => {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const [head, power] = value.toExponential(1).split("e");
  if (Math.abs(power) < 3) return refold.digits(value);
  const raised = [...String(Number(power))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
  return `${head} × 10${raised}`;
};

/** How much less or more: 100 → 75 is −25 %. */
refold.change = (before, after) => {
  if (!before || after === null || after === undefined) return "";
  const share = (100 * (after - before)) / before;
  if (Math.abs(share) < 0.05) return "same";
  return `${share < 0 ? "−" : "+"}${Math.abs(share) < 10 ? Math.abs(share).toFixed(1) : Math.abs(share).toFixed(0)} %`;
};

refold.plural = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** A module path, which may break after its dots. */
refold.path = (text, classes = "mono") => {
  const parts = text.split(/(?<=[._])/);
  return refold.h("bdi", { class: classes }, parts.map((part, at) => [at ? refold.h("wbr") : null, part]));
};

/** The end of a long path, which tells more than its start. */
refold.tail = (text, most) => (text.length <= most ? text : `…${text.slice(1 - most)}`);

/* -- what belongs to what: the box after that a box before became, and the branch that it is in */

refold.owner = new Map();
refold.branch = new Map();
refold.facts.after.boxes.forEach((box, id) => {
  (box.from || []).forEach((source) => refold.owner.set(source, id));
  (box.branches || []).forEach((branch, number) => branch.boxes.forEach((source) => refold.branch.set(source, number)));
});

refold.kept = { before: new Map(), after: new Map() };
refold.facts.kept.forEach((item) => {
  for (const side of refold.sides) {
    for (const id of item[side]) {
      refold.kept[side].set(id, [...(refold.kept[side].get(id) || []), item]);
    }
  }
});

refold.box = ({ side, id }) => refold.facts[side].boxes[id];

/** Whether the verb made this box: several became it, or its numbers changed. */
refold.isChanged = (side, id) => {
  if (side === "after") return (refold.facts.after.boxes[id].layers || []).length > 0;
  const owner = refold.owner.get(id);
  return owner !== undefined && refold.isChanged("after", owner);
};

/** The box on the other side, if there is one. */
refold.partner = ({ side, id }) => {
  if (side === "before") return refold.owner.has(id) ? { side: "after", id: refold.owner.get(id) } : null;
  const sources = refold.facts.after.boxes[id].from || [];
  return sources.length ? { side: "before", id: sources[sources.length - 1] } : null;
};

/* -- the selection, which views listen to */

refold.selected = null;
refold.listeners = [];
refold.select = (target, options = {}) => {
  refold.selected = target;
  refold.listeners.forEach((listener) => listener(target, options));
};

/** Show a box in the network. */
refold.open = (side, id) => {
  refold.show("network");
  refold.select({ side, id }, { move: true });
};

/* -- colours, which change with the theme */

refold.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

refold.redraw = []; // what has to be drawn anew when the theme changes

/** Remember a choice where the browser lets a file do that. */
refold.store = (key, value) => {
  try {
    if (value === undefined) return localStorage.getItem(`refold-${key}`);
    localStorage.setItem(`refold-${key}`, value);
  } catch {
    return null;
  }
  return value;
};

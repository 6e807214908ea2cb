"use strict";

/* The first view: what was folded, what it cost before and after, how exact it is, what stayed. */

(() => {
  const { h, facts, count, change, tiny, plural } = refold;
  const { before, after } = facts;

  const layersText = (side) =>
    plural(side.layers, "layer") + (side.norms ? ` and ${plural(side.norms, "norm")}` : "");

  const lead = () => {
    if (facts.verb === "pruned") return `${plural(facts.steps, "layer")} lost channels, of ${layersText(before)}.`;
    if (facts.verb === "without residuals") return `${plural(facts.steps, "residual sum")} removed: ${layersText(before)} became ${layersText(after)}.`;
    if (!facts.steps) return "Nothing in this network can be folded.";
    return `${plural(facts.steps, "fold")}: ${layersText(before)} became ${layersText(after)}.`;
  };

  const verdict = () => {
    const proof = facts.proof;
    if (!proof) return null;
    if (proof.runtime) {
      const exact = proof.exact === null ? "" : `Largest difference ${tiny(proof.exact)} in float64; `;
      return h("p", { class: "verdict" }, h("b", {}, "✓ Same function. "), exact,
        `${tiny(proof.shipped)} in ${proof.runtime} with the weights as written, over ${plural(proof.inputs, "input")}.`);
    }
    if (proof.vacuous) {
      return h("p", { class: "verdict warn" }, h("b", {}, "Checked, but it proves little. "),
        "Every norm still has its initial statistics: load trained weights.");
    }
    return h("p", { class: "verdict" }, h("b", {}, facts.verb === "pruned" ? "✓ Same function as with those channels masked. " : "✓ Same function. "),
      `Largest difference ${tiny(proof.exact)} in float64 over ${plural(proof.inputs, "input")}; `,
      `${tiny(proof.shipped)} with the weights as written.`);
  };

  const card = (label, was, is, write = count) => {
    if (was === null || was === undefined || is === null || is === undefined) return null;
    const most = Math.max(was, is, 1);
    const bar = (side, value) => h("i", { class: side, style: { width: `${Math.max((100 * value) / most, value ? 0.8 : 0)}%` } });
    return h("div", { class: "card figure" },
      h("h3", {}, label),
      h("p", { class: "big" }, write(is), h("span", { class: is > was ? "change more" : "change" }, change(was, is))),
      h("div", { class: "twin", "aria-hidden": "true" }, bar("before", was), bar("after", is)),
      h("p", { class: "small" }, `before: ${write(was)}`));
  };

  const hero = () =>
    h("div", { class: "hero" },
      h("p", { class: "eyebrow" }, [facts.verb, facts.input && `input ${facts.input}`, facts.dtype].filter(Boolean).join(" · ")),
      h("h1", {}, h("bdi", {}, facts.name)),
      h("p", { class: "lead" }, lead()),
      verdict());

  const cards = () =>
    h("div", { class: "cards" },
      card("Steps in the graph", before.steps, after.steps),
      card("Layers and norms", before.layers + before.norms, after.layers + after.norms),
      card("Parameters", before.parameters, after.parameters),
      card("Multiply-adds", before.macs, after.macs),
      card("Weights in memory", before.bytes, after.bytes, refold.bytes));

  /* -- by stage */

  const measures = [
    { key: "macs", label: "Multiply-adds", of: (box) => box.macs, write: count },
    { key: "parameters", label: "Parameters", of: (box) => box.parameters, write: count },
    { key: "steps", label: "Steps", of: (box) => (["input", "output"].includes(box.kind) ? 0 : 1), write: count },
    { key: "ms", label: "Latency", of: (box) => box.ms, write: (value) => (value === null ? "–" : `${refold.digits(value)} ms`) },
  ].filter(({ of }) => [...before.boxes, ...after.boxes].some((box) => of(box)));

  const total = (side, stage, of) => {
    const values = facts[side].boxes.filter((box) => box.stage === stage).map(of).filter((value) => value !== null && value !== undefined);
    return values.reduce((sum, value) => sum + value, 0);
  };

  const stageRows = (measure) => {
    const rows = facts.stages.map((name, stage) => ({
      name, stage, was: total("before", stage, measure.of), is: total("after", stage, measure.of),
    }));
    const told = rows.filter((row) => row.was || row.is);
    const most = Math.max(1e-9, ...rows.map((row) => Math.max(row.was, row.is)));
    const bar = (side, value) => h("i", { class: side, style: { width: `${(100 * value) / most}%` } });
    return told.map((row) =>
      h("button", { type: "button", class: "stage", title: "Show in the network",
        onclick: () => refold.open("after", Math.max(0, after.boxes.findIndex((box) => box.stage === row.stage))) },
        h("span", { class: "name" }, h("bdi", {}, refold.tail(row.name, 15))),
        h("span", { class: "twin" }, bar("before", row.was), bar("after", row.is)),
        h("span", { class: "numbers" }, measure.write(row.was), h("span", { class: "arrow" }, " → "), h("b", {}, measure.write(row.is))),
        h("span", { class: row.is > row.was ? "change more" : "change" }, change(row.was, row.is))));
  };

  const stages = () => {
    const list = h("div", { class: "stages" });
    const choose = (measure) => {
      list.replaceChildren(...stageRows(measure));
      buttons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.key === measure.key));
    };
    const buttons = measures.map((measure) =>
      h("button", { type: "button", "data-key": measure.key, onclick: () => choose(measure) }, measure.label));
    if (measures.length) choose(measures[0]);
    return h("div", { class: "card" },
      h("div", { class: "head" }, h("h2", {}, "Cost by stage"), h("div", { class: "choice" }, buttons)),
      list,
      h("p", { class: "small legend" }, h("i", { class: "before" }), "before", h("i", { class: "after" }), "after",
        facts.after.boxes.some((box) => box.ms) && " · latency: each step run by itself in torch on this machine, median of 7 runs"));
  };

  /* -- what became what */

  const recipe = (item) =>
    h("button", { type: "button", class: "recipe", title: "Show the first one in the network",
      onclick: () => refold.open("after", item.boxes[0]) },
      h("span", { class: "times" }, `${item.boxes.length} ×`),
      h("span", { class: "sum" },
        item.branches.map((branch, number) => [
          number ? h("span", { class: "op" }, "+") : null,
          h("span", { class: "chip" }, branch),
        ]),
        h("span", { class: "op" }, "="),
        h("span", { class: "chip result" }, item.to)));

  const recipes = () =>
    facts.recipes.length > 0 &&
    h("div", { class: "card" },
      h("div", { class: "head" }, h("h2", {}, "What became what")),
      h("div", { class: "recipes" }, facts.recipes.slice(0, 12).map(recipe)),
      facts.recipes.length > 12 && h("p", { class: "small" }, `and ${facts.recipes.length - 12} rarer kinds, in the network`));

  /* -- what stayed */

  const COSTLIER = "Exact, but it would need more multiply-adds. allow_growth=True makes it.";

  /** A reason without the names in it: places that stayed for one cause stand together. */
  const kindOf = (item) => (item.costlier ? COSTLIER : item.reason.replace(/[^\s,;:()]+(\.[^\s,;:().]+)+/g, "…"));

  const place = (item) => {
    const [side] = refold.sides.filter((name) => item[name].length).slice(-1);
    const own = item.reason !== kindOf(item); // more than the heading says
    const label = [refold.path(item.place), own && h("span", { class: "small" }, ` ${item.reason}`)];
    return h("li", {}, side ? h("button", { type: "button", class: "link", onclick: () => refold.open(side, item[side][0]) }, label) : label);
  };

  const stayed = () => {
    const reasons = new Map();
    for (const item of facts.kept) {
      const reason = kindOf(item);
      reasons.set(reason, [...(reasons.get(reason) || []), item]);
    }
    const groups = [...reasons].sort((one, other) => other[1].length - one[1].length);
    return h("div", { class: "card" },
      h("div", { class: "head" }, h("h2", {}, "What stayed, and why")),
      groups.length ? null : h("p", { class: "soft" }, facts.verb === "folded" ? "Nothing: whatever could be folded was." : "Nothing."),
      groups.map(([reason, items]) =>
        h("details", { class: "reason", open: groups.length === 1 && items.length < 6 },
          h("summary", {}, h("span", { class: "times" }, `${items.length} ×`), h("span", {}, reason)),
          h("ul", {}, items.slice(0, 200).map(place)))));
  };

  document.getElementById("overview").append(
    h("div", { class: "page" }, hero(), cards(),
      h("div", { class: "columns" }, stages(), h("div", { class: "stack" }, recipes(), stayed())),
      h("footer", {}, `Made by refold ${facts.version} with torch ${facts.torch}. Press ? for the keyboard.`)));
})();

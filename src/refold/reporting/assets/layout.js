"use strict";

/* Where every box is drawn. A network is cut where a single value holds all that is still needed;
   dagre lays out what lies between two cuts, once for all blocks that look alike. */

refold.layout = (() => {
  const GAP = 26; // between two boxes in a row
  const LAYER = { width: 158, height: 42 };
  const PLAIN = new Set(["sum", "act", "pool", "other", "input", "output", "concat"]);

  const size = (box) => {
    if (box.kind === "sum" || box.title.length === 1) return { width: 26, height: 26 };
    if (PLAIN.has(box.kind) && !box.parameters) return { width: Math.min(150, 26 + 6.6 * box.title.length), height: 24 };
    return LAYER;
  };

  /** Return the boxes whose value is the only one that later boxes still read. */
  const necks = (boxes) => {
    const last = boxes.map((_, id) => id);
    boxes.forEach((box, id) => box.reads.forEach((source) => { last[source] = id; }));
    const found = [];
    let open = 0;
    boxes.forEach((_, id) => {
      if (open <= id) found.push(id);
      open = Math.max(open, last[id]);
    });
    return found;
  };

  const known = new Map();

  /** Lay out boxes first..end; both ends lie on the axis, the first one at height 0. */
  const segment = (boxes, sizes, first, end) => {
    const inside = [];
    for (let id = first; id <= end; id += 1) inside.push(id);
    const edges = inside.slice(1).flatMap((id) => boxes[id].reads.filter((source) => source >= first).map((source) => [source - first, id - first]));
    const shape = JSON.stringify([inside.map((id) => [sizes[id].width, sizes[id].height]), edges]);
    if (!known.has(shape)) known.set(shape, place(inside.map((id) => sizes[id]), edges));
    return known.get(shape);
  };

  const straight = (sizes) => {
    let y = 0;
    const nodes = sizes.map((own, number) => {
      if (number) y += sizes[number - 1].height / 2 + GAP + own.height / 2;
      return { x: 0, y };
    });
    return { nodes, edges: [], left: -Math.max(...sizes.map((s) => s.width)) / 2, right: Math.max(...sizes.map((s) => s.width)) / 2 };
  };

  /** Tell edges that dagre routes from those that run beside all boxes: where every layer reads all
   *  before it, routing each would take minutes and show nothing. */
  const tellApart = (count, edges) => {
    const depth = new Array(count).fill(0);
    edges.forEach(([from, to]) => { depth[to] = Math.max(depth[to], depth[from] + 1); });
    const spans = edges.map(([from, to]) => depth[to] - depth[from]);
    let room = 150 + 2 * count; // ranks that long edges may cross, all together
    const order = edges.map((_, at) => at).sort((one, other) => spans[one] - spans[other] || one - other);
    const inside = new Set(order.filter((at) => {
      if (spans[at] > 1) room -= spans[at];
      return spans[at] <= 1 || room > 0;
    }));
    return [edges.filter((_, at) => inside.has(at)), edges.filter((_, at) => !inside.has(at))];
  };

  const place = (sizes, edges) => {
    if (sizes.length <= 2) return straight(sizes);
    const [routed, long] = tellApart(sizes.length, edges);
    const graph = new dagre.graphlib.Graph();
    graph.setGraph({ nodesep: 18, ranksep: GAP, edgesep: 10, ranker: sizes.length > 400 ? "longest-path" : "network-simplex" });
    graph.setDefaultEdgeLabel(() => ({}));
    sizes.forEach((own, number) => graph.setNode(String(number), { ...own }));
    routed.forEach(([from, to]) => graph.setEdge(String(from), String(to)));
    try {
      dagre.layout(graph);
    } catch {
      return straight(sizes);
    }
    const nodes = sizes.map((_, number) => graph.node(String(number)));
    const [top, bottom] = [nodes[0], nodes[nodes.length - 1]];
    const [dx, dy] = [-(top.x + bottom.x) / 2, -top.y];
    const moved = nodes.map(({ x, y }, number) => ({ x: number && number < nodes.length - 1 ? x + dx : 0, y: y + dy }));
    const routes = routed.map(([from, to]) => ({
      from, to, points: graph.edge(String(from), String(to)).points.slice(1, -1).map(({ x, y }) => ({ x: x + dx, y: y + dy })),
    }));
    const xs = moved.flatMap(({ x }, number) => [x - sizes[number].width / 2, x + sizes[number].width / 2]);
    const bends = routes.flatMap(({ points }) => points.map(({ x }) => x));
    const [inner, right] = [Math.min(...xs, ...bends), Math.max(...xs, ...bends)];
    long.forEach(([from, to]) => {
      const lane = inner - 14 - 5 * (from % 8); // those of one box share a lane
      const [start, end] = [moved[from].y + sizes[from].height / 2 + GAP / 2, moved[to].y - sizes[to].height / 2 - GAP / 2];
      routes.push({ from, to, points: [{ x: lane, y: start + 12 }, { x: lane, y: end - 12 }] });
    });
    return { nodes: moved, edges: routes, left: long.length ? inner - 54 : inner, right };
  };

  /** Return nodes and edges of one side.
   *  `wanted` says how far down a box should be at least, so that it stands beside its origins. */
  const side = (boxes, wanted) => {
    const sizes = boxes.map(size);
    const nodes = boxes.map((_, id) => ({ x: 0, y: 0, ...sizes[id] }));
    const edges = new Map();
    const cuts = necks(boxes);
    let [left, right] = [0, 0];
    const down = (id, y) => Math.max(y, wanted(id) ?? y);
    nodes[0].y = down(0, 0);
    const ends = cuts.slice(1).concat(cuts[cuts.length - 1] < boxes.length - 1 ? [boxes.length - 1] : []);
    let first = cuts[0];
    for (const end of ends) {
      const part = segment(boxes, sizes, first, end);
      const start = nodes[first].y;
      const height = part.nodes[part.nodes.length - 1].y;
      const stretch = Math.max(1, (down(end, start + height) - start) / Math.max(1, height));
      part.nodes.forEach(({ x, y }, number) => {
        if (number) Object.assign(nodes[first + number], { x, y: start + y * stretch });
      });
      part.edges.forEach(({ from, to, points }) =>
        edges.set(`${first + from} ${first + to}`, points.map(({ x, y }) => ({ x, y: start + y * stretch }))));
      [left, right] = [Math.min(left, part.left), Math.max(right, part.right)];
      first = end;
    }
    const lines = boxes.flatMap((box, id) => box.reads.map((source) => ({ from: source, to: id, points: edges.get(`${source} ${id}`) || [] })));
    return { nodes, edges: lines, left, right };
  };

  /** Return both sides in one plane: before on the left, after beside its origins on the right. */
  return (before, after, gap = 150) => {
    const one = side(before, () => null);
    const centre = (id) => {
      const sources = after[id].from || [];
      if (!sources.length) return null;
      const ys = sources.map((source) => one.nodes[source].y);
      return (Math.min(...ys) + Math.max(...ys)) / 2;
    };
    // What runs in another order than before stands wherever it comes, and moves nothing else.
    const wanted = after.map((_, id) => centre(id));
    let above = Infinity;
    for (let id = wanted.length - 1; id >= 0; id -= 1) {
      if (wanted[id] > above) wanted[id] = null;
      above = Math.min(above, wanted[id] ?? Infinity);
    }
    const other = side(after, (id) => wanted[id]);
    const shift = one.right + gap - other.left;
    other.nodes.forEach((node) => { node.x += shift; });
    other.edges = other.edges.map((edge) => ({ ...edge, points: edge.points.map(({ x, y }) => ({ x: x + shift, y })) }));
    const bottom = Math.max(...[...one.nodes, ...other.nodes].map(({ y, height }) => y + height / 2));
    return { before: one, after: other, left: one.left, right: other.right + shift, top: -20, bottom };
  };
})();

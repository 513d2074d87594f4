// Points, each tied to the anchor nearest to it; a lost point looks hollow.

window.dblmStart("points", (root, data, step) => {
  const near = data.near[step];
  const place = (kind, attributes) => {
    root.querySelectorAll(`.dblm-${kind}`).forEach((mark, n) => {
      const lost = near[n] === data.home[n] ? "" : " dblm-lost";
      const values = attributes(data.p[step][n], data.a[near[n]]);
      for (const key in values) mark.setAttribute(key, values[key]);
      if (kind !== "name") mark.setAttribute("class", `dblm-${kind}${lost}`);
    });
  };
  place("dot", ([x, y]) => ({ cx: x, cy: y }));
  place("tie", ([x, y], [toX, toY]) => ({ x1: x, y1: y, x2: toX, y2: toY }));
  place("name", ([x, y]) => ({ x: x + 7, y: y - 6 }));
  return data.notes[step];
});

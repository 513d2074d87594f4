// A matrix of outputs and inputs: the ring is around the chosen input, the
// outputs that answer to it are bold.

window.dblmStart("grid", (root, data, step, option) => {
  const shades = data.m[option].flat();
  root.querySelectorAll(".dblm-cell").forEach((cell, k) => {
    cell.setAttribute("fill-opacity", shades[k] / 100);
  });
  root
    .querySelector(".dblm-ring")
    .setAttribute("x", data.left + step * data.side);
  const mark = (name, isOn) => {
    root.querySelectorAll(`.dblm-${name}`).forEach((label, k) => {
      label.setAttribute("class", `dblm-${name}${isOn(k) ? " dblm-on" : ""}`);
    });
  };
  mark("row", (k) => data.on[option][step][k]);
  mark("column", (k) => k === step);
  return data.notes[option][step];
});

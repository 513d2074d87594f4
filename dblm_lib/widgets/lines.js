// Curves that follow a slider, with the areas under them.

window.dblmStart("lines", (root, data, step, option) => {
  const curves = data.y[option][step].map(
    (y) => `M${y.map((value, k) => `${data.x[k]} ${value}`).join("L")}`,
  );
  root.querySelectorAll(".dblm-line").forEach((path, s) => {
    path.setAttribute("d", curves[s]);
  });
  root.querySelectorAll(".dblm-area").forEach((path, s) => {
    path.setAttribute("d", curves[s] + data.close);
  });
  return data.notes[option][step];
});

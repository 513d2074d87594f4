// Tokens of a text, one panel or two; what is new in a step is underlined.

window.dblmStart("tokens", (root, data, step) => {
  root.querySelectorAll(".dblm-tokens").forEach((box, panel) => {
    const row = data.f[panel][step];
    const before = data.f[panel][Math.max(step - 1, 0)];
    const sure = data.c[panel]?.[step];
    box.textContent = "";
    row.forEach((id, k) => {
      const span = document.createElement("span");
      span.textContent = data.v[id].replace(/\n/g, "↵\n");
      if (id !== before[k]) span.className = "dblm-new";
      if (sure) {
        span.style.setProperty("--v", sure[k] / 100);
        span.title = `${data.label} ${(sure[k] / 100).toFixed(2)}`;
      }
      if (k && data.gap) box.append(data.gap);
      box.append(span);
    });
    const words = row.map((id) => data.v[id]);
    box.setAttribute("aria-label", data.names[panel] + words.join(data.gap));
    // A panel grows and never shrinks: the page below it stays where it is.
    const tallest = Math.max(
      parseFloat(box.style.minHeight) || 0,
      box.offsetHeight,
    );
    box.style.minHeight = `${tallest}px`;
  });
  return data.notes[step];
});

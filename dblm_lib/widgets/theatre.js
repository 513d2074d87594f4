// Texts that models write, one stage a model, a menu of tales.

window.dblmStart("theatre", (root, data, step, option) => {
  const panels = data.t[option];
  // Number k of a packed text, in which each takes so many letters.
  const read = (packed, k, letters) => {
    let number = 0;
    for (const letter of packed.slice(k * letters, (k + 1) * letters))
      number = number * 64 + data.letters.indexOf(letter);
    return number;
  };
  const isFinal = (panel, k) => step >= read(panel.e, k, data.far);

  root.querySelectorAll(".dblm-stage").forEach((box, p) => {
    const panel = panels[p];
    const [end, beyond, newline] = data.marks;
    let said = "";
    let ended = false;
    box.textContent = "";
    for (let k = 0; k < panel.n; k++) {
      const at = step * panel.n + k;
      const word = data.v[read(panel.f, at, data.wide)];
      const settled = isFinal(panel, k);
      const masked = data.blank !== null && word === data.blank;
      const isNew =
        data.blank !== null &&
        step > 0 &&
        word !== data.v[read(panel.f, at - panel.n, data.wide)];
      let mark = settled ? "" : "dblm-still-changes ";
      if (isNew) mark += "dblm-new ";
      if (masked) mark = "dblm-blank ";
      const span = document.createElement("span");
      span.className = mark + (ended ? "dblm-beyond" : "");
      span.title = data.words[masked ? 3 : +settled];
      if (panel.c && (masked || data.blank === null)) {
        const sure = (read(panel.c, at, 1) / 63).toFixed(2);
        span.style.setProperty("--v", sure);
        span.title = `${data.label} ${sure}, ${span.title}`;
      }
      if (word === data.end) {
        span.textContent = ended ? beyond : end;
        ended = true;
      } else {
        span.textContent = masked
          ? data.mask
          : word.replace(/\n/g, ended ? newline : `${newline}\n`);
        const heard = masked ? ` ${data.mask}` : word;
        if (!ended) said += (k ? data.gap : "") + heard;
      }
      if (k && data.gap) box.append(data.gap);
      box.append(span);
    }
    box.setAttribute("aria-label", data.names[p] + said);
    // A stage grows and never shrinks: the page below it stays where it is.
    const tallest = Math.max(
      parseFloat(box.style.minHeight) || 0,
      box.offsetHeight,
    );
    box.style.minHeight = `${tallest}px`;
  });
  root.querySelectorAll(".dblm-count").forEach((line, p) => {
    let done = 0;
    for (let k = 0; k < panels[p].n; k++) done += isFinal(panels[p], k);
    line.textContent = `${data.before[p][step]}${done} of ${panels[p].n}${data.words[2]}`;
  });
  root.querySelectorAll(".dblm-verdict").forEach((line, p) => {
    line.textContent = panels[p].s;
  });
  return data.notes[step];
});

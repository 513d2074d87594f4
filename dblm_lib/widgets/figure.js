// What all interactive figures share: slider, menu, button and readout.
//
// The script of each kind says how it draws:
//
//   dblmStart("lines", (root, data, step, option) => "what is seen");
//
// shows one step of one option of the menu and returns the line of text
// under the figure. An output of a notebook holds this script, its kind's,
// and the figure above them. On a page of the book each script stands once,
// with the first figure that needs it: figures further down are started when
// the page has been read.

window.dblmStart = (kind, draw) => {
  const start = (root) => {
    const data = JSON.parse(root.querySelector(".dblm-data").textContent);
    const [range, output, menu, button, readout] = [
      "input",
      "output",
      "select",
      "button",
      ".dblm-readout",
    ].map((selector) => root.querySelector(selector));
    const last = data.steps.length - 1;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let timer = null;

    const show = () => {
      const step = +range.value;
      range.setAttribute("aria-valuetext", data.steps[step]);
      output.textContent = data.steps[step];
      readout.textContent = draw(root, data, step, menu ? +menu.value : 0);
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      readout.setAttribute("aria-live", "polite");
      if (button) button.textContent = calm ? "Next step" : "Play";
    };
    const go = () => {
      range.value = +range.value < last ? +range.value + 1 : 0;
      show();
      if (+range.value === last) stop();
    };
    const play = () => {
      if (calm) return go();
      if (timer) return stop();
      // Nobody can listen to a text that changes several times a second.
      readout.setAttribute("aria-live", "off");
      button.textContent = "Pause";
      go();
      timer = setInterval(go, data.ms);
    };

    range.addEventListener("input", () => {
      stop();
      show();
    });
    menu?.addEventListener("change", show);
    button?.addEventListener("click", play);
    // A part of the drawing may stand for a step.
    root.addEventListener("click", (event) => {
      const step = event.target.getAttribute("data-at");
      if (step === null) return;
      range.value = step;
      stop();
      show();
    });
    stop();
    show();

    // Play by itself once, when half of the figure has come into view.
    if (!data.auto || calm) return;
    const eye = new IntersectionObserver(
      ([seen]) => {
        if (!seen.isIntersecting) return;
        eye.disconnect();
        if (!timer) play();
      },
      { threshold: 0.5 },
    );
    eye.observe(root);
    range.addEventListener("input", () => eye.disconnect());
  };

  const startAll = () => {
    for (const root of document.querySelectorAll(`[data-dblm=${kind}]`)) {
      if (root.dblm) continue;
      root.dblm = true;
      try {
        start(root);
      } catch (error) {
        // The other figures start all the same.
        reportError(error);
      }
    }
  };
  document.addEventListener("DOMContentLoaded", startAll);
  startAll();
};

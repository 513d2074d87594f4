"""Figures that a reader can move without a kernel.

A published page has no Python behind it. Each function here therefore
precomputes what the reader may ask for, and returns one self-contained
piece of HTML: the picture, its data as JSON, native controls, and a few
lines of JavaScript that swap one frame for another. It needs no network
and looks the same in Jupyter, in Colab and on the page.

- `line_explorer`: curves that follow a slider.
- `token_explorer`: text coming out of noise, step by step.
- `theatre`: several such texts, two models side by side.
- `points_explorer`: points drifting in the plane, tied to their nearest.
- `grid_explorer`: which output answers to which input.
- `live`: the same control with a kernel behind it (ipywidgets).

The HTML is the same bytes for the same numbers: coordinates are rounded
to whole units of a fine grid. Every figure asks for ``alt``, a sentence
that says what is drawn to a reader who cannot see it. Tokens and labels
are escaped; they may hold anything.
"""

import hashlib
import json
import math
import re
import string
from html import escape

import numpy as np

# The palette of `plots`, and the same hues lifted for a dark card.
_LIGHT = (
    "--d-bg:#fcfcfb;--d-fg:#24292f;--d-dim:#57606a;--d-rule:#d8dbe0;"
    "--d-hot:0,114,178;--d-0:#0072b2;--d-1:#d55e00;--d-2:#009070;"
    "--d-3:#aa4499;--d-4:#b07d00;--d-5:#3a8fc4;--d-6:#595959;"
    "color-scheme:light"
)
_DARK = (
    "--d-bg:#1b1f24;--d-fg:#e6e8eb;--d-dim:#a9b1ba;--d-rule:#444c56;"
    "--d-hot:86,180,233;--d-0:#56b4e9;--d-1:#f28e4b;--d-2:#3ac9a0;"
    "--d-3:#dd88cc;--d-4:#e6b422;--d-5:#9ad0f5;--d-6:#b8b8b8;"
    "color-scheme:dark"
)
# A page that names its theme wins over the system's: the book (data-theme),
# Colab (theme) and Jupyter (data-jp-theme-light). The book's theme puts each
# HTML output on a light box, which this figure does not need.
_STYLE = f"""
.dblm-figure{{{_LIGHT}}}
@media (prefers-color-scheme:dark){{
html:not([data-theme=light]):not([theme=light]) .dblm-figure{{{_DARK}}}}}
html[data-theme=dark] .dblm-figure,html[theme=dark] .dblm-figure,
body[data-jp-theme-light=false] .dblm-figure{{{_DARK}}}
.bd-content div.cell_output .text_html:has(>.dblm-figure){{
background:none!important;padding:0!important}}
html body[data-jp-theme-light=true] .dblm-figure.dblm-figure{{{_LIGHT}}}
""" + (
    ".dblm-figure{box-sizing:border-box;max-width:44rem;margin:0 0 1rem;"
    "padding:.75rem;border:1px solid var(--d-rule);border-radius:.4rem;"
    "background:var(--d-bg);color:var(--d-fg);"
    "font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}\n"
    ".dblm-figure *{box-sizing:border-box}"
    ".dblm-figure p{margin:.25rem 0;color:var(--d-fg)}"
    ".dblm-figure .dblm-title{font-weight:600}\n"
    ".dblm-figure .dblm-readout{color:var(--d-dim);font-size:.9rem;"
    "min-height:1.5em}\n"
    ".dblm-controls{display:flex;flex-wrap:wrap;gap:.4rem .8rem;"
    "align-items:center;margin:.25rem 0}"
    ".dblm-controls label{display:flex;flex:1 1 14rem;gap:.5rem;"
    "flex-wrap:wrap;align-items:center;margin:0}"
    ".dblm-controls .dblm-pick{flex:0 1 auto}\n"
    ".dblm-controls input{flex:1 1 9rem;min-width:5rem;width:9rem;"
    "height:2rem;accent-color:var(--d-0)}"
    ".dblm-controls output{min-width:3.5em;"
    "font-variant-numeric:tabular-nums}\n"
    ".dblm-controls select,.dblm-controls button{font:inherit;"
    "max-width:100%;padding:.25rem .7rem;border:1px solid var(--d-dim);"
    "border-radius:.3rem;background:var(--d-bg);color:var(--d-fg)}"
    ".dblm-controls button{cursor:pointer;min-width:5.5em}\n"
    ".dblm-controls :focus-visible{outline:2px solid var(--d-0);"
    "outline-offset:2px}\n"
    ".dblm-figure svg{display:block;width:100%;height:auto;"
    "background:none}"
    ".dblm-figure svg text{font:12px system-ui,sans-serif;"
    "fill:currentColor}"
    "@media (max-width:600px){.dblm-figure svg text{font-size:15px}}\n"
    ".dblm-line,.dblm-still{fill:none;stroke-width:2px;"
    "vector-effect:non-scaling-stroke}"
    ".dblm-still{stroke:var(--d-dim);stroke-width:1.5px}"
    ".dblm-area{opacity:.16}.dblm-axis{stroke:var(--d-dim)}"
    ".dblm-grid{stroke:var(--d-rule)}\n"
    ".dblm-legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;"
    "font-size:.9rem}.dblm-legend span{display:flex;gap:.4rem;"
    "align-items:center}.dblm-legend svg{width:28px}\n"
    ".dblm-panels{display:flex;flex-wrap:wrap;gap:.5rem}"
    ".dblm-panels>div{flex:1 1 16rem;min-width:0}"
    ".dblm-tokens{padding:.5rem;border:1px solid var(--d-rule);"
    "border-radius:.3rem;white-space:pre-wrap;line-height:1.9}\n"
    ".dblm-tokens span{padding:.15em 0;border-radius:.2em;"
    "border-bottom:2px solid transparent;"
    "background:rgba(var(--d-hot),calc(var(--v,0)*.45))}"
    ".dblm-tokens .dblm-new{border-bottom-color:var(--d-1)}\n"
    ".dblm-scale{display:inline-block;width:5rem;height:.8rem;"
    "border:1px solid var(--d-rule);background:linear-gradient(90deg,"
    "rgba(var(--d-hot),0),rgba(var(--d-hot),.45))}\n"
    ".dblm-anchor{fill:none;stroke:var(--d-dim)}"
    ".dblm-figure svg .dblm-home{fill:var(--d-dim)}"
    ".dblm-tie{stroke:var(--d-0)}.dblm-dot{fill:var(--d-0);"
    "stroke:var(--d-0);stroke-width:2}"
    ".dblm-lost.dblm-tie{stroke:var(--d-1);stroke-dasharray:4 3}"
    ".dblm-lost.dblm-dot{fill:var(--d-bg);stroke:var(--d-1)}\n"
    ".dblm-cell{fill:var(--d-0);stroke:var(--d-rule);cursor:pointer}"
    ".dblm-ring{fill:none;stroke:var(--d-1);stroke-width:2.5}"
    ".dblm-figure svg .dblm-on{font-weight:700;fill:var(--d-1)}"
)

# What one kind of figure adds; the others keep their bytes.
_MORE_STYLE = {
    "theatre": (
        ".dblm-controls .dblm-pick,.dblm-pick select{max-width:100%;"
        "min-width:0}"
        ".dblm-panels>div:has(>.dblm-stage){display:flex;"
        "flex-direction:column}.dblm-stage{flex:1 0 auto}\n"
        ".dblm-tokens .dblm-still-changes{font-style:italic;"
        "border-bottom:2px dotted var(--d-1)}\n"
        ".dblm-tokens .dblm-beyond{opacity:.7;font-style:normal}"
        ".dblm-tokens .dblm-space{white-space:pre}\n"
        ".dblm-figure .dblm-count{color:var(--d-dim);font-size:.9rem;"
        "font-variant-numeric:tabular-nums}"
        ".dblm-figure .dblm-verdict{font-size:.9rem;min-height:3em}\n"
        ".dblm-legend .dblm-tokens{display:inline;padding:0;border:0;"
        "line-height:1.5}\n"
    )
}
# Whole numbers are packed into texts, six bits a letter.
_LETTERS = string.ascii_uppercase + string.ascii_lowercase
_LETTERS += string.digits + "-_"
_SUREST = len(_LETTERS) - 1  # one letter a confidence

# `draw(root, data, i, o)` shows frame i of option o and returns the readout.
_CORE = """
document.querySelectorAll('[data-dblm="ID"]').forEach(function(root){
 if(root.dblm)return;root.dblm=1;
 function el(q){return root.querySelector(q)}
 var data=JSON.parse(el('.dblm-data').textContent);
 var range=el('input'),pick=el('select'),button=el('button');
 var readout=el('.dblm-readout'),timer=null,last=data.steps.length-1;
 var calm=window.matchMedia&&
  matchMedia('(prefers-reduced-motion: reduce)').matches;
 function show(){
  var i=+range.value,step=data.steps[i];
  range.setAttribute('aria-valuetext',step);el('output').textContent=step;
  readout.textContent=draw(root,data,i,pick?+pick.value:0);
 }
 function stop(){
  clearInterval(timer);timer=null;readout.setAttribute('aria-live','polite');
  if(button)button.textContent=calm?'Next step':'Play';
 }
 function go(){
  range.value=+range.value<last?+range.value+1:0;show();
  if(+range.value===last)stop();
 }
 function play(){
  if(calm)return go();
  if(timer)return stop();
  readout.setAttribute('aria-live','off');button.textContent='Pause';
  go();timer=setInterval(go,data.ms);
 }
 range.addEventListener('input',function(){stop();show()});
 if(pick)pick.addEventListener('change',show);
 if(button)button.addEventListener('click',play);
 root.addEventListener('click',function(e){
  var at=e.target.getAttribute&&e.target.getAttribute('data-at');
  if(at!==null&&at!==undefined){range.value=at;stop();show()}
 });
 stop();show();
 if(!data.auto||calm)return;
 if(!window.IntersectionObserver)return play();
 var eye=new IntersectionObserver(function(seen){
  if(seen[0].isIntersecting){eye.disconnect();if(!timer)play()}
 },{threshold:.5});eye.observe(root);
 range.addEventListener('input',function(){eye.disconnect()});
});"""

_DRAW = {
    "lines": """
function draw(root,d,i,o){
 function path(y,end){return y.map(function(v,k){
  return(k?'L':'M')+d.x[k]+' '+v}).join('')+end}
 root.querySelectorAll('.dblm-line').forEach(function(p,s){
  p.setAttribute('d',path(d.y[o][i][s],''))});
 root.querySelectorAll('.dblm-area').forEach(function(p,s){
  p.setAttribute('d',path(d.y[o][i][s],d.close))});
 return d.notes[o][i];
}""",
    "tokens": """
function draw(root,d,i){
 root.querySelectorAll('.dblm-tokens').forEach(function(box,p){
  var row=d.f[p][i],was=d.f[p][i?i-1:0],sure=d.c[p]&&d.c[p][i],words=[];
  box.textContent='';
  row.forEach(function(id,k){
   var s=document.createElement('span'),w=d.v[id];
   words.push(w);s.textContent=w.replace(/\\n/g,'\\u21b5\\n');
   if(id!==was[k])s.className='dblm-new';
   if(sure){s.style.setProperty('--v',sure[k]/100);
    s.title=d.label+' '+(sure[k]/100).toFixed(2)}
   if(k&&d.gap)box.appendChild(document.createTextNode(d.gap));
   box.appendChild(s);
  });
  box.setAttribute('aria-label',d.names[p]+words.join(d.gap));
  box.style.minHeight=Math.max(parseFloat(box.style.minHeight)||0,
   box.offsetHeight)+'px';
 });
 return d.notes[i];
}""",
    "theatre": """
function draw(root,d,i,o){
 function each(q,f){root.querySelectorAll(q).forEach(f)}
 function read(s,k,w){for(var n=0,j=k*w;j<k*w+w;j++)
  n=n*64+d.letters.indexOf(s[j]);return n}
 each('.dblm-tokens.dblm-stage',function(box,p){
  var q=d.t[o][p],said='',ended=false,k,s,w,sure,moves;
  box.textContent='';
  for(k=0;k<q.n;k++){
   s=document.createElement('span');w=d.v[read(q.f,i*q.n+k,d.wide)];
   moves=i<read(q.e,k,d.far);
   s.className=(moves?'dblm-still-changes ':'')+(ended?'dblm-beyond':'');
   s.title=moves?d.words[0]:d.words[1];
   if(q.c){sure=read(q.c,i*q.n+k,1)/63;s.style.setProperty('--v',
    sure.toFixed(2));s.title=d.label+' '+sure.toFixed(2)+', '+s.title}
   if(w===d.end){s.textContent=ended?d.marks[1]:d.marks[0];ended=true}
   else{s.textContent=w.replace(/\\n/g,ended?d.marks[2]:d.marks[2]+'\\n');
    if(!ended)said+=(k?d.gap:'')+w}
   if(k&&d.gap)box.appendChild(document.createTextNode(d.gap));
   box.appendChild(s);
  }
  box.setAttribute('aria-label',d.names[p]+said);
  box.style.minHeight=Math.max(parseFloat(box.style.minHeight)||0,
   box.offsetHeight)+'px';
 });
 each('.dblm-count',function(e,p){var q=d.t[o][p],n=0,k;
  for(k=0;k<q.n;k++)n+=i>=read(q.e,k,d.far);
  e.textContent=d.before[p][i]+n+' of '+q.n+d.words[2]});
 each('.dblm-verdict',function(e,p){e.textContent=d.t[o][p].s});
 return d.notes[i];
}""",
    "points": """
function draw(root,d,i){
 function each(q,f){root.querySelectorAll(q).forEach(f)}
 function put(e,a){for(var k in a)e.setAttribute(k,a[k])}
 function lost(n){return d.near[i][n]===d.home[n]?'':' dblm-lost'}
 each('.dblm-dot',function(e,n){var p=d.p[i][n];
  put(e,{cx:p[0],cy:p[1],'class':'dblm-dot'+lost(n)})});
 each('.dblm-tie',function(e,n){var p=d.p[i][n],a=d.a[d.near[i][n]];
  put(e,{x1:p[0],y1:p[1],x2:a[0],y2:a[1],'class':'dblm-tie'+lost(n)})});
 each('.dblm-name',function(e,n){var p=d.p[i][n];
  put(e,{x:p[0]+7,y:p[1]-6})});
 return d.notes[i];
}""",
    "grid": """
function draw(root,d,i,o){
 root.querySelectorAll('.dblm-cell').forEach(function(e,k){
  var n=d.steps.length,v=d.m[o][k/n|0][k%n];
  e.setAttribute('fill-opacity',v/100)});
 root.querySelector('.dblm-ring').setAttribute('x',d.left+i*d.side);
 root.querySelectorAll('.dblm-row').forEach(function(e,r){
  e.setAttribute('class','dblm-row'+(d.on[o][i][r]?' dblm-on':''))});
 root.querySelectorAll('.dblm-column').forEach(function(e,c){
  e.setAttribute('class','dblm-column'+(c===i?' dblm-on':''))});
 return d.notes[o][i];
}""",
}


class Figure:
    """An interactive figure as HTML; Jupyter and the book display it.

    Attributes
    ----------
    html : str
        The whole figure: markup, style, data and script.
    name : str
        Its id on the page.
    """

    def __init__(self, kind, name, html):
        self.kind, self.name, self.html = kind, name, html

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"<interactive figure {self.name}>"


def line_explorer(
    frames,
    x,
    series,
    slider_label,
    slider_values,
    *,
    alt,
    xlabel="",
    ylabel="",
    title="",
    select_label="schedule",
    reference=None,
    notes=None,
    xlim=None,
    ylim=None,
    fill=False,
    start=0,
    name=None,
):
    """Draw curves that follow a slider.

    Parameters
    ----------
    frames : array (slider values, series, points), or dict of such arrays
        One frame a slider value. A dict adds a menu of its keys.
    x : array (points,)
    series : list of str
        Names in the legend.
    slider_label : str
        What the slider sets, with its unit.
    slider_values : list of float or str
        What is shown beside the slider, one a frame.
    alt : str
        A sentence that says what is drawn.
    select_label : str
        What the menu chooses.
    reference : dict of str to array (points,), optional
        Curves that stay, dashed: the clean density, the target.
    notes : list of str, or dict of such lists, optional
        The line of text under each frame; without it, where each curve
        is highest.
    xlim, ylim : pair of float, optional
        The window; all the data otherwise.
    fill : bool
        Fill the area under the curves.
    start : int
        The frame shown first.
    name : str, optional
        The figure's id; from its content otherwise.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        Lengths differ, a number is NaN or infinite, or nothing is given.

    Examples
    --------
    >>> line_explorer([[[0, 1]], [[1, 0]]], [0, 1], ["slope"], "t",
    ...               [0, 1], alt="A line that tips over.", name="tip")
    <interactive figure dblm-tip>
    """
    series, steps = list(series), _steps(slider_values)
    x = _array(x, "x", 1)
    options = frames if isinstance(frames, dict) else {"": frames}
    if not options:
        raise ValueError("frames is an empty dict: give at least one option")
    shape = (len(steps), len(series), len(x))
    said = "(slider values, series, points)"
    ys = [_array(f, _of("frames", o), 3) for o, f in options.items()]
    for option, y in zip(options, ys, strict=True):
        _same(_of("frames", option), y.shape, shape, said)
    still = {
        key: _array(y, f"reference {key!r}", 1)
        for key, y in (reference or {}).items()
    }
    for key, y in still.items():
        _same(f"reference {key!r}", y.shape, x.shape, "(points,)")
    start = _index(start, len(steps), "start")
    said = _line_notes(notes, options, ys, x, series, slider_label, steps)
    box = _Window(
        x,
        np.concatenate([np.ravel(y) for y in ys + [*still.values()]]),
        xlim,
        ylim,
    )
    low = box.y(np.array([box.ylim[0]]))[0]
    data = {
        "steps": steps,
        "x": box.x(x),
        "y": [[[box.y(line) for line in f] for f in y] for y in ys],
        "close": f"L{box.x(x)[-1]} {low}L{box.x(x)[0]} {low}Z",
        "notes": said,
    }
    shapes = []
    for s in range(len(series)):
        d = _path(data["x"], data["y"][0][start][s])
        if fill:
            shapes.append(
                f'<path class="dblm-area" fill="var(--d-{s % 7})" '
                f'd="{d}{data["close"]}"/>'
            )
        shapes.append(
            f'<path class="dblm-line" stroke="var(--d-{s % 7})" '
            f'stroke-dasharray="{_dash(s)}" d="{d}"/>'
        )
    for y in still.values():
        shapes.append(
            '<path class="dblm-still" stroke-dasharray="3 3" '
            f'd="{_path(data["x"], box.y(y))}"/>'
        )
    drawing = box.svg("".join(shapes), alt, xlabel, ylabel)
    legend = _legend(series, still)
    return _figure(
        "lines",
        data,
        drawing + legend,
        alt=alt,
        title=title,
        slider=(slider_label, start),
        select=(select_label, list(options)) if len(options) > 1 else None,
        readout=said[0][start],
        name=name,
    )


def token_explorer(
    frames,
    values=None,
    *,
    alt,
    step_labels=None,
    slider_label="step",
    value_label="confidence",
    compare=None,
    compare_values=None,
    panel_labels=("", ""),
    notes=None,
    separator="",
    title="",
    start=0,
    play=True,
    autoplay=False,
    interval=160,
    name=None,
):
    """Drag through the steps of a text coming out of noise.

    Parameters
    ----------
    frames : list of list of str
        The tokens of each step, spaces included (or see ``separator``).
        A token that differs from the step before is underlined.
    values : array (steps, positions) in [0, 1], optional
        Confidence of each token: the deeper its colour, the surer.
    alt : str
        A sentence that says what is drawn.
    step_labels : list, optional
        What is shown beside the slider, one a step.
    value_label : str
        What ``values`` are.
    compare, compare_values : optional
        A second panel beside the first, with as many steps.
    panel_labels : pair of str
        Headings of the two panels.
    notes : list of str, optional
        The line of text under each step; without it, the step and its
        mean value.
    separator : str
        Put between tokens: ``" "`` if they are words without spaces.
    play, autoplay : bool
        Show a play button; press it once when the figure is first seen.
        A reader who asked for less motion gets a button for one step.
    interval : int
        Milliseconds a step while playing.
    start, title, name
        As in `line_explorer`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        Steps and values differ in shape, a value is outside [0, 1], or
        nothing is given.
    """
    panels = [_tokens(frames, "frames")]
    sure = [_shares(values, panels[0], "values")]
    if compare is not None:
        panels.append(_tokens(compare, "compare"))
        sure.append(_shares(compare_values, panels[1], "compare_values"))
        if len(panels[1]) != len(panels[0]):
            raise ValueError(
                f"compare has {len(panels[1])} steps and frames "
                f"{len(panels[0])}: give both the same number"
            )
    elif compare_values is not None:
        raise ValueError("compare_values was given without compare")
    count = len(panels[0])
    steps = _steps(range(count) if step_labels is None else step_labels)
    _same("step_labels", (len(steps),), (count,), "one a step")
    start = _index(start, count, "start")
    if notes is None:
        notes = [
            _token_note(slider_label, step, sure[0], i, value_label)
            for i, step in enumerate(steps)
        ]
    notes = _texts(notes, count, "notes")
    names = [str(label) for label in panel_labels][: len(panels)]
    if len(names) != len(panels):
        raise ValueError("give panel_labels, one a panel")
    known = {}
    ids = [
        [[known.setdefault(t, len(known)) for t in row] for row in panel]
        for panel in panels
    ]
    data = {
        "steps": steps,
        "v": list(known),
        "f": ids,
        "c": sure,
        "gap": separator,
        "names": [f"{label}: " if label else "" for label in names],
        "label": value_label,
        "notes": notes,
        "ms": int(interval),
        "auto": bool(play and autoplay),
    }
    boxes = "".join(
        "<div>"
        + (f'<p class="dblm-title">{escape(label)}</p>' if label else "")
        + _token_box(panel[start], c and c[start], separator, label)
        + "</div>"
        for panel, c, label in zip(panels, sure, names, strict=True)
    )
    scale = ""
    if any(sure):
        scale = (
            f'<p class="dblm-legend"><span>{escape(value_label)} 0 '
            '<span class="dblm-scale" aria-hidden="true"></span> 1</span></p>'
        )
    return _figure(
        "tokens",
        data,
        f'<div class="dblm-panels dblm-drawing">{boxes}</div>{scale}',
        alt=alt,
        title=title,
        slider=(slider_label, start),
        play=play,
        readout=notes[start],
        name=name,
    )


def points_explorer(
    frames,
    labels,
    slider_values,
    *,
    alt,
    anchors=None,
    anchor_labels=None,
    home=None,
    nearest=None,
    slider_label="noise level",
    notes=None,
    title="",
    extent=None,
    start=0,
    play=False,
    interval=160,
    name=None,
):
    """Watch points drift, each tied to the anchor nearest to it.

    A point still nearest to its own anchor is a filled disc with a solid
    tie; a point that is lost is a hollow ring with a dashed one.

    Parameters
    ----------
    frames : array (slider values, points, 2)
        Where each point is, for instance noised embeddings in the plane.
    labels : list of str
        One a point.
    slider_values : list of float or str
    alt : str
        A sentence that says what is drawn.
    anchors : array (anchors, 2), optional
        The places that stay, for instance the clean embeddings; the first
        frame otherwise.
    anchor_labels : list of str, optional
    home : list of int, optional
        The anchor that each point belongs to; its own number otherwise.
    nearest : array (slider values, points) of int, optional
        The nearest anchor, if it was found in more dimensions than two;
        in the plane otherwise.
    extent : float, optional
        The window reaches from minus to plus this number.
    slider_label, notes, title, start, play, interval, name
        As in `line_explorer` and `token_explorer`.

    Returns
    -------
    Figure
    """
    frames = _array(frames, "frames", 3)
    steps, labels = _steps(slider_values), [str(label) for label in labels]
    _same(
        "frames",
        frames.shape,
        (len(steps), len(labels), 2),
        "(slider values, points, 2)",
    )
    if anchors is None:
        anchors, anchor_labels = frames[0], anchor_labels or labels
    anchors = _array(anchors, "anchors", 2)
    _same("anchors", anchors.shape, (len(anchors), 2), "(anchors, 2)")
    fixed = _texts(
        [""] * len(anchors) if anchor_labels is None else anchor_labels,
        len(anchors),
        "anchor_labels",
    )
    home = range(len(labels)) if home is None else home
    home = _integers(home, (len(labels),), len(anchors), "home")
    if nearest is None:
        gaps = frames[:, :, None, :] - anchors[None, None]
        nearest = (gaps**2).sum(-1).argmin(-1)
    near = _integers(nearest, frames.shape[:2], len(anchors), "nearest")
    start = _index(start, len(steps), "start")
    if notes is None:
        notes = [
            f"{slider_label} {step}: {sum(map(int.__eq__, row, home))} of "
            f"{len(home)} points are nearest to their own place"
            for step, row in zip(steps, near, strict=True)
        ]
    notes = _texts(notes, len(steps), "notes")
    spots, places = _plane(frames, anchors, extent)
    data = {
        "steps": steps,
        "p": spots,
        "a": places,
        "near": near,
        "home": home,
        "notes": notes,
        "ms": int(interval),
    }
    return _figure(
        "points",
        data,
        _points_svg(data, labels, fixed, start, alt),
        alt=alt,
        title=title,
        slider=(slider_label, start),
        play=play,
        readout=notes[start],
        name=name,
    )


def grid_explorer(
    matrix,
    labels,
    *,
    alt,
    output_labels=None,
    slider_label="changed position",
    select_label="attention",
    threshold=1e-6,
    notes=None,
    title="",
    start=0,
    name=None,
):
    """Choose an input and see which outputs change.

    Parameters
    ----------
    matrix : array (outputs, inputs), or dict of such arrays
        How far output i moves when input j is changed, not negative; or
        attention weights. A dict adds a menu, for instance of ``"causal"``
        and ``"both sides"``. All share one colour scale.
    labels : list of str
        One an input, for instance tokens.
    alt : str
        A sentence that says what is drawn.
    output_labels : list of str, optional
        One an output; ``labels`` otherwise.
    threshold : float
        An output has changed if it moved by more than this.
    slider_label, select_label, notes, title, start, name
        As in `line_explorer`.

    Returns
    -------
    Figure
    """
    columns = [str(label) for label in labels]
    rows = [str(r) for r in output_labels or columns]
    options = matrix if isinstance(matrix, dict) else {"": matrix}
    if not columns or not options:
        raise ValueError("nothing to draw: give labels and a matrix")
    arrays = [_array(m, _of("matrix", o), 2) for o, m in options.items()]
    for option, array in zip(options, arrays, strict=True):
        _same(
            _of("matrix", option),
            array.shape,
            (len(rows), len(columns)),
            "(outputs, inputs)",
        )
        if array.min() < 0:
            raise ValueError(
                f"{_of('matrix', option)} has the negative value "
                f"{array.min():g}: give sizes of changes, or weights"
            )
    start = _index(start, len(columns), "start")
    top = max(array.max() for array in arrays) or 1.0
    on = [(array > threshold).T.astype(int).tolist() for array in arrays]
    if notes is None:
        notes = {
            o: [_grid_note(rows, columns, c, j) for j, c in enumerate(seen)]
            for o, seen in zip(options, on, strict=True)
        }
    notes = _option_notes(notes, options, len(columns))
    data = {
        "steps": [f"{j + 1}: {_visible(c)}" for j, c in enumerate(columns)],
        "m": [_whole(100 * a / top) for a in arrays],
        "on": on,
        "notes": notes,
    }
    drawing = _grid_svg(data, rows, columns, start, alt)
    return _figure(
        "grid",
        data,
        drawing,
        alt=alt,
        title=title,
        slider=(slider_label, start),
        select=(select_label, list(options)) if len(options) > 1 else None,
        readout=notes[0][start],
        name=name,
    )


attention_explorer = grid_explorer


def theatre(
    tales,
    *,
    alt,
    panel_labels,
    step_labels=None,
    slider_label="step",
    select_label="tale",
    value_label="confidence",
    notes=None,
    panel_notes=None,
    end="<|endoftext|>",
    separator="",
    title="",
    start=0,
    play=True,
    autoplay=False,
    interval=160,
    name=None,
):
    """Choose a tale and drag through the steps in which models write it.

    As `token_explorer`, with a menu of tales and a panel a model. A token
    that will still change before the end is italic and has a dotted line
    under it. The first end-of-text token is a small square; what
    stands after it is faint and not counted as text.

    Parameters
    ----------
    tales : list of dict
        ``label``, its name in the menu, and ``panels``, one dict a model:
        ``frames``, list of list of str, the tokens of each step, all of one
        length; ``confidence``, array (steps, positions) in [0, 1], may be
        left out; ``verdict``, str, the line under the text at all steps,
        for instance "At the end the name breaks: Tom, then Lily."
    alt : str
        A sentence that says what is drawn.
    panel_labels : list of str
        Names of the models, one a panel.
    step_labels : list, optional
        What is shown beside the slider, one a step.
    select_label : str
        What the menu chooses.
    value_label : str
        What ``confidence`` is.
    notes : list of str, optional
        The line of text under each step; without it, the step.
    panel_notes : list of lists of str, optional
        For each panel and step what stands before the count of positions
        that are final, for instance its noise level.
    end : str, optional
        The end-of-text token; None if there is none.
    separator, title, start, play, autoplay, interval, name
        As in `token_explorer`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        A tale lacks something, shapes differ, a confidence is outside
        [0, 1], or nothing is given.
    TypeError
        A tale or a panel is no dict.

    Notes
    -----
    The page grows by three bytes a token and step.

    Examples
    --------
    >>> panel = {"frames": [["a", " b"], ["a", " cat"]], "verdict": "good"}
    >>> theatre([{"label": "first", "panels": [panel]}], name="stage",
    ...         alt="Two words.", panel_labels=["repaired"])
    <interactive figure dblm-stage>
    """
    names = _texts(panel_labels, len(panel_labels), "panel_labels")
    labels, plays = _plays(tales, len(names))
    count = len(plays[0][0]["rows"])
    steps = _steps(range(count) if step_labels is None else step_labels)
    _same("step_labels", (len(steps),), (count,), "one a step")
    for t, panels in enumerate(plays):
        for p, panel in enumerate(panels):
            if len(panel["rows"]) != count:
                raise ValueError(
                    f"all panels need the same number of steps: {_spot(t, p)} "
                    f"has {len(panel['rows'])}, the first panel {count}"
                )
    start = _index(start, count, "start")
    if notes is None:
        notes = [f"{slider_label} {step}" for step in steps]
    notes = _texts(notes, count, "notes")
    before = _before(panel_notes, len(names), count)
    known = {}
    for panels in plays:
        for panel in panels:
            for row in panel["rows"]:
                for token in row:
                    known.setdefault(token, len(known))
    wide, far = _width(len(known)), _width(count)
    data = {
        "steps": steps,
        "letters": _LETTERS,
        "v": list(known),
        "wide": wide,
        "far": far,
        "t": [
            [_packed(q, known, wide, far) for q in panels] for panels in plays
        ],
        "gap": separator,
        "end": end,
        "marks": _MARKS,
        "words": _FATES,
        "names": [f"{label}: " if label else "" for label in names],
        "before": before,
        "label": value_label,
        "notes": notes,
        "ms": int(interval),
        "auto": bool(play and autoplay),
    }
    boxes = "".join(
        "<div>"
        + (f'<p class="dblm-title">{escape(label)}</p>' if label else "")
        + _stage(panel, start, data, label)
        + f'<p class="dblm-count">{escape(said[start])}'
        + f"{_final(panel, start)}</p>"
        + f'<p class="dblm-verdict">{escape(panel["verdict"])}</p></div>'
        for panel, label, said in zip(plays[0], names, before, strict=True)
    )
    legend = _stage_legend(plays, value_label, data)
    return _figure(
        "theatre",
        data,
        f'<div class="dblm-panels dblm-drawing">{boxes}</div>{legend}',
        alt=alt,
        title=title,
        slider=(slider_label, start),
        select=(select_label, labels) if len(labels) > 1 else None,
        play=play,
        readout=notes[start],
        name=name,
    )


def live(function, **controls):
    """Call a function again whenever the reader moves a control.

    Parameters
    ----------
    function : callable
        Draws or prints; takes the controls by name.
    **controls
        As in ``ipywidgets.interact``: a pair or triple of numbers is a
        slider ``(low, high[, step])``, a list or dict a menu, a bool a box,
        a string a line of text, and a widget itself.

    Notes
    -----
    Needs a kernel: Jupyter or Colab. A slider calls the function when it
    is let go, since the functions of this book may take a second. Where
    ipywidgets is missing, a line says so and nothing is raised.
    """
    if not callable(function):
        raise TypeError(
            f"live needs a function first, got {type(function).__name__}"
        )
    if not controls:
        raise ValueError("live needs a control, for instance t=(0.0, 1.0)")
    try:
        from IPython.display import display
        from ipywidgets import interactive
    except ImportError:
        print(
            "This control needs ipywidgets: run `pip install ipywidgets` "
            "and restart the kernel. The figure above works without."
        )
        return
    box = interactive(function, **controls)
    for child in box.children:
        if hasattr(child, "continuous_update"):
            child.continuous_update = False
    display(box)


def _figure(
    kind,
    data,
    drawing,
    *,
    alt,
    title,
    slider,
    readout,
    name,
    select=None,
    play=False,
):
    """Put controls, drawing, data and script together."""
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "alt must be a sentence that says what the figure shows"
        )
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    ident = _ident(kind, name, [text, drawing, alt, title, slider, select])
    controls = _controls(data["steps"], slider, select, play)
    heading = f'<p class="dblm-title">{escape(title)}</p>' if title else ""
    script = _DRAW[kind] + _CORE.replace("ID", ident)
    style = _STYLE + _MORE_STYLE.get(kind, "")
    html = (
        f'<div class="dblm-figure tex2jax_ignore mathjax_ignore" '
        f'id="{ident}" data-dblm="{ident}" role="group" '
        f'aria-label="{escape(title or alt)}">\n<style>{style}</style>\n'
        f"{heading}{controls}\n{drawing.replace('CLIP', ident)}\n"
        f'<p class="dblm-readout" aria-live="polite">{escape(readout)}</p>\n'
        f'<script type="application/json" class="dblm-data">{text}</script>'
        f"\n<script>(function(){{{script}\n}})();</script>\n</div>"
    )
    return Figure(kind, ident, html)


def _controls(steps, slider, select, play):
    label, start = slider
    parts = []
    if select:
        choices = "".join(
            f'<option value="{i}">{escape(str(option))}</option>'
            for i, option in enumerate(select[1])
        )
        parts.append(
            f'<label class="dblm-pick"><span>{escape(select[0])}</span> '
            f'<select autocomplete="off">{choices}</select></label>'
        )
    parts.append(
        f"<label><span>{escape(label)}</span> "
        f'<input type="range" min="0" max="{len(steps) - 1}" step="1" '
        f'value="{start}" autocomplete="off" '
        f'aria-valuetext="{escape(steps[start])}"> '
        f"<output>{escape(steps[start])}</output></label>"
    )
    if play:
        parts.append('<button type="button">Play</button>')
    return f'<div class="dblm-controls">{"".join(parts)}</div>'


def _ident(kind, name, content):
    if name is None:
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        return f"dblm-{kind}-{digest[:10]}"
    if not re.fullmatch(r"[a-z][a-z0-9-]*", str(name)):
        raise ValueError(
            f"name must be lower-case letters, digits and hyphens, "
            f"such as 'noise-slider'; got {name!r}"
        )
    return f"dblm-{name}"


class _Window:
    """Axes: data to whole quarter-units of a 440 x 270 picture."""

    wide, tall, left, right, top, low = 440, 270, 52, 10, 10, 46

    def __init__(self, x, y, xlim, ylim):
        self.xlim = _limits(xlim, x, "xlim", 0.0)
        self.ylim = _limits(ylim, y, "ylim", 0.04)

    def x(self, values):
        low, high = self.xlim
        span = self.wide - self.left - self.right
        return _grid(self.left + (values - low) / (high - low) * span)

    def y(self, values):
        low, high = self.ylim
        span = self.tall - self.top - self.low
        share = np.clip((values - low) / (high - low), -0.5, 1.5)
        return _grid(self.tall - self.low - share * span)

    def svg(self, shapes, alt, xlabel, ylabel):
        right, floor = self.wide - self.right, self.tall - self.low
        marks = []
        for value in _ticks(*self.xlim):
            at = self.x(np.array([value]))[0] / 4
            marks.append(
                f'<path class="dblm-grid" d="M{at:g} {self.top}V{floor}"/>'
                f'<text x="{at:g}" y="{floor + 16}" text-anchor="middle">'
                f"{_say(value)}</text>"
            )
        for value in _ticks(*self.ylim):
            at = self.y(np.array([value]))[0] / 4
            marks.append(
                f'<path class="dblm-grid" d="M{self.left} {at:g}H{right}"/>'
                f'<text x="{self.left - 6}" y="{at + 4:g}" '
                f'text-anchor="end">{_say(value)}</text>'
            )
        middle = (self.top + floor) / 2
        return (
            f'<svg class="dblm-drawing" viewBox="0 0 {self.wide} {self.tall}" '
            f'role="img" aria-label="{escape(alt)}">'
            f'<clipPath id="CLIP-clip"><rect x="{self.left}" y="{self.top}" '
            f'width="{right - self.left}" height="{floor - self.top}"/>'
            f"</clipPath>{''.join(marks)}"
            f'<path class="dblm-axis" d="M{self.left} {floor}H{right}"/>'
            f'<text x="{(self.left + right) / 2:g}" y="{self.tall - 8}" '
            f'text-anchor="middle">{escape(xlabel)}</text>'
            f'<text transform="translate(13 {middle:g}) rotate(-90)" '
            f'text-anchor="middle">{escape(ylabel)}</text>'
            f'<g clip-path="url(#CLIP-clip)"><g transform="scale(.25)">'
            f"{shapes}</g></g></svg>"
        )


def _limits(given, values, name, margin):
    """Return the ends of an axis: as given, or around the data."""
    if given is None:
        low, high = float(np.min(values)), float(np.max(values))
        pad = margin * (high - low) or 0.5 * (low == high)
        floor = 0.0 if low >= 0 else -math.inf
        given = (max(low - pad, floor), high + pad)
    low, high = (float(v) for v in given)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must be (low, high), got {given}")
    return low, high


def _ticks(low, high, most=6):
    """Choose round numbers between two ends."""
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _say(value):
    return f"{value:.6g}".replace("-", "−")


def _grid(values):
    return _whole(4 * np.asarray(values))


def _whole(values):
    """Round to whole numbers, a tie alike on every machine."""
    return np.rint(np.round(values, 6)).astype(int).tolist()


def _brief(value):
    return f"{round(float(value), 6) + 0.0:.3g}"


def _path(x, y):
    return "M" + "L".join(f"{a} {b}" for a, b in zip(x, y, strict=True))


def _dash(s):
    return ("none", "none", "7 3", "7 3", "2 2", "2 2", "9 3 2 3")[s % 7]


def _legend(series, still):
    line = (
        '<span><svg viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" '
        'class="{}" stroke="{}" stroke-dasharray="{}"/></svg>{}</span>'
    )
    items = [
        line.format("dblm-key", f"var(--d-{s % 7})", _dash(s), escape(label))
        for s, label in enumerate(series)
    ]
    items += [
        line.format("dblm-key", "var(--d-dim)", "3 3", escape(label))
        for label in still
    ]
    body = "".join(items).replace('class="dblm-key"', 'stroke-width="2.5"')
    return f'<div class="dblm-legend">{body}</div>'


def _line_notes(notes, options, ys, x, series, slider_label, steps):
    if notes is None:
        notes = {
            option: [
                f"{slider_label} {step}{', ' if option else ''}{option}: "
                + "; ".join(
                    f"{label} is highest at {_brief(x[np.round(line, 6).argmax()])} "
                    f"({_brief(line.max())})"
                    for label, line in zip(series, frame, strict=True)
                )
                for step, frame in zip(steps, y, strict=True)
            ]
            for option, y in zip(options, ys, strict=True)
        }
    return _option_notes(notes, options, len(steps))


def _option_notes(notes, options, count):
    if not isinstance(notes, dict):
        notes = dict.fromkeys(options, notes)
    if list(notes) != list(options):
        raise ValueError(
            f"notes are for {list(notes)}, the options are {list(options)}"
        )
    return [_texts(notes[o], count, _of("notes", o)) for o in options]


def _token_note(slider_label, step, sure, i, value_label):
    note = f"{slider_label} {step}"
    if sure:
        mean = sum(sure[i]) / len(sure[i]) / 100
        note += f": mean {value_label} {mean:.2f}"
    return note


def _token_box(row, sure, separator, label):
    spans = []
    for k, token in enumerate(row):
        style = ""
        if sure:
            style = f' style="--v:{sure[k] / 100:g}"'
        text = escape(token).replace("\n", "↵\n")
        spans.append(f"<span{style}>{text}</span>")
    said = (f"{label}: " if label else "") + separator.join(row)
    return (
        f'<div class="dblm-tokens" role="img" aria-label="{escape(said)}">'
        f"{escape(separator).join(spans)}</div>"
    )


_MARKS = ["∎", " ·", "↵"]  # the end, an end after the end, a line break
_FATES = ["will still change", "final", " positions are final"]


def _plays(tales, count):
    """Check the tales of a theatre; labels, and panels ready to draw."""
    if isinstance(tales, dict) or not len(tales):
        raise ValueError("tales must be a list of dicts, at least one")
    labels, plays = [], []
    for t, tale in enumerate(tales):
        where = f"tales[{t}]"
        _keys(tale, where, ["label", "panels"])
        labels.append(str(tale["label"]))
        if isinstance(tale["panels"], dict) or len(tale["panels"]) != count:
            raise ValueError(
                f"{where} has {len(tale['panels'])} panels, but there are "
                f"{count} panel_labels: give a list with one dict a label"
            )
        plays.append(
            [_play(q, _spot(t, p)) for p, q in enumerate(tale["panels"])]
        )
    return labels, plays


def _play(panel, where):
    _keys(panel, where, ["frames", "verdict"], ["confidence"])
    rows = _tokens(panel["frames"], f"{where} frames")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{where} frames must have one length: step {i} has "
                f"{len(row)} tokens, step 0 has {len(rows[0])}"
            )
    sure = panel.get("confidence")
    sure = _shares(sure, rows, f"{where} confidence", _SUREST)
    # The first step from which a position's token stays as it is.
    settled = [
        next(
            (i + 1 for i in reversed(range(len(rows))) if rows[i][k] != last),
            0,
        )
        for k, last in enumerate(rows[-1])
    ]
    return {
        "rows": rows,
        "sure": sure,
        "settled": settled,
        "verdict": str(panel["verdict"]),
    }


def _spot(t, p):
    return f"tales[{t}] panels[{p}]"


def _keys(given, where, needed, allowed=()):
    """Refuse a dict that lacks a key, or has one that nobody reads."""
    if not isinstance(given, dict):
        raise TypeError(
            f"{where} must be a dict with {', '.join(needed)}; "
            f"got {type(given).__name__}"
        )
    missing = [key for key in needed if key not in given]
    unknown = [key for key in given if key not in {*needed, *allowed}]
    if missing or unknown:
        wrong = f"lacks {missing}" if missing else f"has unknown {unknown}"
        raise ValueError(
            f"{where} {wrong}: give {', '.join(needed)}"
            + (f" and, if you like, {', '.join(allowed)}" if allowed else "")
        )


def _before(panel_notes, panels, count):
    if panel_notes is None:
        return [[""] * count for _ in range(panels)]
    if isinstance(panel_notes, str) or len(panel_notes) != panels:
        raise ValueError(
            f"panel_notes must be {panels} lists of texts, one a panel; "
            f"got {panel_notes!r}"
        )
    return [
        [f"{note}; " for note in _texts(said, count, f"panel_notes[{p}]")]
        for p, said in enumerate(panel_notes)
    ]


def _width(count):
    """How many letters a number below ``count`` takes (at most ``count``)."""
    return next(w for w in range(1, 9) if count < len(_LETTERS) ** w)


def _pack(numbers, width):
    """Write whole numbers as letters, six bits each."""
    base = len(_LETTERS)
    return "".join(
        _LETTERS[number // base**place % base]
        for number in numbers
        for place in reversed(range(width))
    )


def _packed(panel, known, wide, far):
    rows, sure = panel["rows"], panel["sure"]
    return {
        "n": len(rows[0]),
        "f": _pack((known[token] for row in rows for token in row), wide),
        "c": sure and _pack((c for row in sure for c in row), 1),
        "e": _pack(panel["settled"], far),
        "s": panel["verdict"],
    }


def _final(panel, i):
    settled = panel["settled"]
    done = sum(first <= i for first in settled)
    return f"{done} of {len(settled)}{_FATES[2]}"


def _stage(panel, i, data, label):
    """One panel's text at one step, as the script draws it."""
    spans, text, ended = [], [], False
    for k, token in enumerate(panel["rows"][i]):
        moves = i < panel["settled"][k]
        fate = _FATES[0] if moves else _FATES[1]
        mark = "dblm-still-changes " if moves else ""
        mark += "dblm-beyond" if ended else ""
        style = ""
        if panel["sure"]:
            sure = f"{panel['sure'][i][k] / _SUREST:.2f}"
            style = f' style="--v:{sure}"'
            fate = f"{data['label']} {sure}, {fate}"
        shown = token.replace("\n", _MARKS[2] if ended else _MARKS[2] + "\n")
        if token == data["end"]:
            shown, ended = _MARKS[ended], True
        elif not ended:
            text.append(token)
        spans.append(
            f'<span class="{mark}" title="{escape(fate)}"{style}>'
            f"{escape(shown)}</span>"
        )
    gap = data["gap"]
    said = (f"{label}: " if label else "") + gap.join(text)
    return (
        f'<div class="dblm-tokens dblm-stage" role="img" '
        f'aria-label="{escape(said)}">{escape(gap).join(spans)}</div>'
    )


def _stage_legend(plays, value_label, data):
    """Say what a token's looks mean; only what occurs."""
    rows = [
        f'<span><span class="dblm-tokens"><span class="{mark}">word</span>'
        f"</span> {fate}</span>"
        for mark, fate in zip(["dblm-still-changes", ""], _FATES, strict=False)
    ]
    if data["end"] in data["v"]:
        rows.append(f"<span>{_MARKS[0]} end of the text</span>")
    if any(panel["sure"] for panels in plays for panel in panels):
        rows.append(
            f'<span>{escape(value_label)} 0 <span class="dblm-scale" '
            'aria-hidden="true"></span> 1</span>'
        )
    return f'<p class="dblm-legend">{"".join(rows)}</p>'


def _tokens(frames, name):
    if isinstance(frames, str) or not len(frames):
        raise ValueError(f"{name} needs a list of tokens for each step")
    rows = []
    for i, row in enumerate(frames):
        if isinstance(row, str) or not len(row):
            raise ValueError(
                f"{name}[{i}] must be a list of tokens, at least one; "
                f"got {row!r}"
            )
        marks = str.maketrans({"Ġ": " ", "Ċ": "\n"})
        rows.append([str(token).translate(marks) for token in row])
    return rows


def _shares(values, rows, name, top=100):
    """Turn values in [0, 1] into whole numbers up to top, row by row."""
    if values is None:
        return None
    if len(values) != len(rows):
        raise ValueError(
            f"{name} has {len(values)} rows for {len(rows)} steps of tokens"
        )
    out = []
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        value = _array(value, f"{name}[{i}]", 1)
        _same(f"{name}[{i}]", value.shape, (len(row),), "one a token")
        if value.min() < -1e-6 or value.max() > 1 + 1e-6:
            raise ValueError(
                f"{name} must lie in [0, 1]; row {i} reaches from "
                f"{value.min():g} to {value.max():g}"
            )
        out.append(_whole(top * np.clip(value, 0, 1)))
    return out


def _plane(frames, anchors, extent):
    """Map the plane to a 440 x 340 picture, both axes to one scale."""
    wide, tall, margin = 440, 340, 24
    everything = np.concatenate([frames.reshape(-1, 2), anchors])
    if extent is None:
        low, high = everything.min(0), everything.max(0)
    elif extent > 0:
        low, high = np.full(2, -extent), np.full(2, extent)
    else:
        raise ValueError(f"extent must be positive, got {extent}")
    room = np.array([wide - 2 * margin, tall - 2 * margin])
    scale = (room / np.maximum(high - low, 1e-9)).min()
    centre = (low + high) / 2

    def place(points):
        out = np.array([1, -1]) * (points - centre) * scale
        return _whole(out + np.array([wide, tall]) / 2)

    return [place(frame) for frame in frames], place(anchors)


def _points_svg(data, labels, fixed, start, alt):
    ties, dots, names = [], [], []
    for n, (x, y) in enumerate(data["p"][start]):
        near = data["near"][start][n]
        lost = "" if near == data["home"][n] else " dblm-lost"
        to = data["a"][near]
        ties.append(
            f'<line class="dblm-tie{lost}" x1="{x}" y1="{y}" x2="{to[0]}" '
            f'y2="{to[1]}"/>'
        )
        dots.append(
            f'<circle class="dblm-dot{lost}" cx="{x}" cy="{y}" r="4">'
            f"<title>{escape(_visible(labels[n]))}</title></circle>"
        )
        names.append(
            f'<text class="dblm-name" x="{x + 7}" y="{y - 6}">'
            f"{escape(_visible(labels[n]))}</text>"
        )
    rings = [
        f'<circle class="dblm-anchor" cx="{x}" cy="{y}" r="7"/>'
        f'<text class="dblm-home" x="{x + 9}" y="{y + 12}">'
        f"{escape(_visible(label) if label else '')}</text>"
        for (x, y), label in zip(data["a"], fixed, strict=True)
    ]
    return (
        '<svg class="dblm-drawing" viewBox="0 0 440 340" role="img" '
        f'aria-label="{escape(alt)}">{"".join(rings + ties + dots + names)}'
        "</svg>"
    )


def _grid_svg(data, rows, columns, start, alt):
    names = [_short(_visible(label)) for label in rows]
    heads = [_short(_visible(label)) for label in columns]
    left = 16 + 8 * max(map(len, names))
    top = 16 + 8 * max(map(len, heads))
    side = (440 - left - 8) // max(len(columns), 6)
    data["left"], data["side"] = left, side
    cells, texts = [], []
    for r, row in enumerate(data["m"][0]):
        on = " dblm-on" if data["on"][0][start][r] else ""
        texts.append(
            f'<text class="dblm-row{on}" x="{left - 6}" '
            f'y="{top + (r + 0.5) * side + 4:g}" text-anchor="end">'
            f"{escape(names[r])}</text>"
        )
        cells += [
            f'<rect class="dblm-cell" data-at="{c}" x="{left + c * side}" '
            f'y="{top + r * side}" width="{side}" height="{side}" '
            f'fill-opacity="{value / 100:g}"/>'
            for c, value in enumerate(row)
        ]
    for c, head in enumerate(heads):
        on = " dblm-on" if c == start else ""
        at = f"{left + (c + 0.5) * side + 4:g} {top - 6}"
        texts.append(
            f'<text class="dblm-column{on}" data-at="{c}" '
            f'transform="translate({at}) rotate(-90)">{escape(head)}</text>'
        )
    tall = top + side * len(rows) + 8
    return (
        f'<svg class="dblm-drawing" viewBox="0 0 440 {tall}" role="img" '
        f'aria-label="{escape(alt)}">{"".join(texts + cells)}'
        f'<rect class="dblm-ring" x="{left + start * side}" y="{top}" '
        f'width="{side}" height="{side * len(rows)}" pointer-events="none"/>'
        "</svg>"
    )


def _grid_note(rows, columns, seen, j):
    moved = [f"{i + 1} {_visible(rows[i])}" for i, s in enumerate(seen) if s]
    return (
        f"changing {j + 1} {_visible(columns[j])} moves {len(moved)} of "
        f"{len(rows)} outputs: {', '.join(moved) or 'none'}"
    )


def _visible(token):
    text = str(token).replace("Ġ", " ").replace("Ċ", "\n").strip(" ")
    return text.replace("\n", "↵") or "␣"


def _short(text, width=10):
    return text if len(text) <= width else text[: width - 1] + "…"


def _steps(values):
    steps = [v if isinstance(v, str) else _say_step(v) for v in values]
    if not steps:
        raise ValueError("the slider needs at least one value")
    return steps


def _say_step(value):
    value = float(value)
    return str(int(value)) if value.is_integer() else f"{value:.4g}"


def _texts(values, count, name):
    if isinstance(values, str) or len(values) != count:
        raise ValueError(f"{name} must be {count} texts, got {values!r}")
    return [str(value) for value in values]


def _integers(values, shape, limit, name):
    array = _array(values, name, len(shape))
    _same(name, array.shape, tuple(shape), "one a point")
    if (array != np.rint(array)).any() or not (
        0 <= array.min() and array.max() < limit
    ):
        raise ValueError(
            f"{name} must be whole numbers of anchors, 0 to {limit - 1}"
        )
    return array.astype(int).tolist()


def _index(value, count, name):
    if not -count <= value < count:
        raise ValueError(f"{name} must be a frame, 0 to {count - 1}: {value}")
    return int(value) % count


def _array(values, name, dims):
    """Read numbers, from a tensor too; refuse NaN, infinity and nothing."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be numbers in rows of equal length ({error})"
        ) from None
    if array.ndim != dims or array.size == 0:
        raise ValueError(
            f"{name} must have {dims} dimension(s) and not be empty, "
            f"got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or infinity: a figure cannot draw it; "
            "clip it, or leave the end point out"
        )
    return array


def _same(name, got, wanted, meaning):
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{name} has shape {tuple(got)}, but {tuple(wanted)} was "
            f"expected: {meaning}"
        )


def _of(name, option):
    return f"{name}[{option!r}]" if option != "" else name

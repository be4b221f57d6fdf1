/* The page with the sliders: solve removable(R(s)) = s for any network, tolerance and scale of the weights, and draw it.
 *
 * The data come from explore-data.js, which the book's builder makes from the records (prunelimit/experiments/explore.py).
 * solve() is prunelimit.limit.solve_limit, on the same grid. The tests hold its results against the library's.
 */
(function () {
  "use strict";

  const data = window.prunelimitExplore;
  const root = document.getElementById("explore");
  if (!root) return;
  if (!data || !data.views.length) {
    document.getElementById("explore-missing").hidden = false;
    return;
  }

  const find = (name) => document.getElementById(`explore-${name}`);
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
  const state = { view: data.views[0], factor: 1, scale: 1, zoom: false };

  // ---------------------------------------------------------------- the formula

  for (const view of data.views) {
    for (const name of ["value", "low", "high"]) {
      // The first entry and the falls after it become the fractions d(mu) / D.
      let now = 2 * view.dimension[name][0];
      view.dimension[name] = view.dimension[name].map((fall) => (now -= fall) * data.unit);
    }
  }

  /** R(s) of the trained weights, interpolated between the recorded points. */
  function distance(view, s) {
    const place = s * (view.radius.length - 1);
    const left = Math.min(Math.floor(place), view.radius.length - 2);
    return view.radius[left] + (place - left) * (view.radius[left + 1] - view.radius[left]);
  }

  /** The removable fraction 1 - d(2 eps / R^2) / D; `which` is value, low or high, the end of d that is used. */
  function removable(view, which, epsilon, radius) {
    if (radius === 0) return 1;
    const table = view.dimension[which];
    const place = (Math.log((2 * epsilon) / radius ** 2) - view.dimension.start) / view.dimension.step;
    const last = table.length - 1;
    if (place <= 0) return 1 - table[0];
    if (place >= last) return 1 - table[last] * Math.exp((last - place) * view.dimension.step); // d falls like 1 / mu
    const left = Math.floor(place);
    return 1 - (table[left] + (place - left) * (table[left + 1] - table[left]));
  }

  /** The largest s of the grid that does not exceed removable(R(s)) + shift. */
  function solve(view, which, epsilon, scale, shift) {
    let low = 0;
    let high = data.grid;
    while (low < high) {
      const middle = Math.floor((low + high + 1) / 2);
      const s = middle / data.grid;
      if (removable(view, which, epsilon, scale * distance(view, s)) + shift >= s) low = middle;
      else high = middle - 1;
    }
    return low / data.grid;
  }

  /** The search for the one-shot limit, on the recorded losses with straight lines between them. */
  function measured(view, epsilon) {
    const { sparsity, rise } = view.rise;
    const last = sparsity.length - 1;
    if (rise[last] <= epsilon) return { sparsity: sparsity[last], beyond: true };
    let low = 0;
    let high = 1;
    while (high - low > view.bracket) {
      const s = (low + high) / 2;
      const right = sparsity.findIndex((x) => x >= s);
      let value = Infinity; // past the last record, where the loss is too high already
      if (right > 0) {
        const share = (s - sparsity[right - 1]) / (sparsity[right] - sparsity[right - 1]);
        value = rise[right - 1] + share * (rise[right] - rise[right - 1]);
      }
      if (value <= epsilon) low = s;
      else high = s;
    }
    return { sparsity: low, beyond: false };
  }

  function answer({ view, factor, scale }) {
    const epsilon = factor * view.epsilon;
    const limit = solve(view, "value", epsilon, scale, 0);
    const ends = [solve(view, "high", epsilon, scale, 0), solve(view, "low", epsilon, scale, 0)];
    const radius = scale * distance(view, limit);
    return {
      epsilon,
      limit,
      low: Math.min(...ends),
      high: Math.max(...ends),
      lower: solve(view, "value", epsilon, scale, -view.margin),
      upper: solve(view, "value", epsilon, scale, view.margin),
      radius,
      mu: (2 * epsilon) / radius ** 2,
      measured: scale === 1 ? measured(view, epsilon) : null,
    };
  }

  // ---------------------------------------------------------------- words and numbers

  const percent = (x) => `${(100 * x).toFixed((x > 0.995 && x < 1) || (x > 0 && x < 0.005) ? 2 : 1)}\u00a0%`;
  const short = (x) => String(Number(x.toPrecision(3)));
  const count = (x) => Number(x.toPrecision(3)).toLocaleString("en-US");
  const times = (x) => `${short(x)} times`;
  const relative = (factor) => (factor === 1 ? "the default" : `${times(factor)} the default`);
  const between = (a, b) => `${percent(a)} to ${percent(b)}`;

  function measuredWords(found) {
    if (!found) return ["not measured", "for scaled weights"];
    if (found.beyond) return [`above ${percent(found.sparsity)}`, "no sparser cut is recorded"];
    return [percent(found.sparsity), state.factor === 1 ? "recorded" : "interpolated between recorded cuts"];
  }

  function sentence(found) {
    const { view, factor, scale } = state;
    const [value, how] = measuredWords(found.measured);
    const oneShot = !found.measured
      ? "One-shot pruning of scaled weights is not measured."
      : found.measured.beyond
        ? `One-shot pruning keeps the loss within ε even at ${percent(found.measured.sparsity)}, and ${how}.`
        : `One-shot pruning keeps the loss within ε up to ${value} (${how}).`;
    return (
      `${view.group}, ${view.label}: with ε = ${short(found.epsilon)} nats (${relative(factor)}) and the weights ` +
      `times ${short(scale)}, the curves cross at ${percent(found.limit)}. There about ` +
      `${count(view.total * (1 - found.limit))} of ${view.total.toLocaleString("en-US")} weights are kept ` +
      `(${percent(1 - found.limit)}) and about ${count(view.total * found.limit)} removed. The computation leaves ` +
      `${between(found.low, found.high)} open, and the window between the lower and the upper bound is ` +
      `${between(found.lower, found.upper)}. ${oneShot}`
    );
  }

  function writeNumbers(found) {
    const { view } = state;
    const { limit, low, high, lower, upper, measured: shot } = found;
    const [value, how] = measuredWords(shot);
    const all = view.total.toLocaleString("en-US");
    const [some, whole] = [count(view.examples), count(view.population)];
    const sample = view.examples < view.population ? `from ${some} of ${whole} images` : "";
    const width = `${(100 * (high - low)).toFixed(1)} points wide`;
    const rows = [
      ["limit", [limit], "predicted limit s*: removed", percent(limit), `about ${count(view.total * limit)} of ${all}`],
      ["kept", [1 - limit], "kept at the limit", percent(1 - limit), `about ${count(view.total * (1 - limit))} of ${all}`],
      ["interval", [low, high], "interval of the computation", between(low, high), sample ? `${width}, ${sample}` : width],
      ["window", [lower, upper], "lower to upper bound", between(lower, upper), `η = ${data.eta}`],
      ["measured", shot ? [shot.sparsity] : [], "one-shot, measured", value, how],
      ["radius", [found.radius], "distance cR(s*) at the limit", short(found.radius), `μ = ${short(found.mu)}`],
    ];
    find("numbers").innerHTML = rows
      .map(([key, values, name, text, note]) => {
        const mark = `data-key="${key}" data-value="${values.join(" ")}"`;
        return `<div><dt>${name}</dt><dd ${mark}>${text}<small>${note}</small></dd></div>`;
      })
      .join("");
  }

  // ---------------------------------------------------------------- the picture

  function axisRange(found) {
    if (!state.zoom) return [0, 1];
    const ends = [found.low, found.high, found.lower, found.upper, ...(found.measured ? [found.measured.sparsity] : [])];
    const reach = 1.2 * Math.max(...ends.map((x) => Math.abs(x - found.limit)));
    const width = 2 * ([0.025, 0.05, 0.1, 0.2].find((x) => x >= reach) || 0.5);
    const left = clamp(Math.round((found.limit - width / 2) * 100) / 100, 0, 1 - width);
    return [left, left + width];
  }

  function draw(found) {
    const { view, factor, scale } = state;
    const svg = find("picture");
    const width = Math.max(svg.clientWidth || root.clientWidth, 260);
    const height = Math.round(clamp(0.62 * width, 280, 460));
    const box = { left: 52, right: width - 14, top: 12, bottom: height - 46 };
    const [from, to] = axisRange(found);
    const x = (s) => box.left + ((s - from) / (to - from)) * (box.right - box.left);
    const y = (s) => box.bottom - ((s - from) / (to - from)) * (box.bottom - box.top);
    const line = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
    const places = Array.from({ length: 601 }, (_, i) => from + ((to - from) * i) / 600);
    const curve = (which, epsilon, by) => places.map((s) => [s, removable(view, which, epsilon, by * distance(view, s))]);
    const parts = [];

    const step = (to - from) / 5;
    for (let tick = Math.ceil(from / step - 1e-9) * step; tick <= to + 1e-9; tick += step) {
      const text = `${Math.round(100 * tick)} %`;
      parts.push(`<line class="explore-gridline" x1="${x(tick)}" x2="${x(tick)}" y1="${box.top}" y2="${box.bottom}"/>`);
      parts.push(`<line class="explore-gridline" x1="${box.left}" x2="${box.right}" y1="${y(tick)}" y2="${y(tick)}"/>`);
      parts.push(`<text x="${x(tick)}" y="${box.bottom + 18}" text-anchor="middle">${text}</text>`);
      parts.push(`<text x="${box.left - 8}" y="${y(tick) + 4}" text-anchor="end">${text}</text>`);
    }
    const middle = (box.left + box.right) / 2;
    parts.push(`<text x="${middle}" y="${box.bottom + 38}" text-anchor="middle">sparsity <tspan font-style="italic">s</tspan>: fraction of the weights removed</text>`);

    const inside = [];
    const [a, b] = [x(found.lower), x(found.upper)];
    const tall = `y="${box.top}" height="${box.bottom - box.top}"`;
    inside.push(`<rect class="explore-window" x="${a}" width="${Math.max(b - a, 1)}" ${tall}/>`);
    const [over, under] = ["low", "high"].map((which) => curve(which, found.epsilon, scale));
    const band = line(over) + line(under.reverse()).replace("M", "L");
    inside.push(`<path class="explore-band" d="${band}Z"/>`);
    inside.push(`<path class="explore-removed" d="${line([[from, from], [to, to]])}"/>`);
    const moved = factor !== 1 || scale !== 1;
    if (moved) inside.push(`<path class="explore-start" d="${line(curve("value", view.epsilon, 1))}"/>`);
    inside.push(`<path class="explore-curve" d="${line(curve("value", found.epsilon, scale))}"/>`);
    const [here, there] = [x(found.limit), y(found.limit)];
    inside.push(`<line class="explore-drop" x1="${here}" x2="${here}" y1="${there}" y2="${box.bottom}"/>`);
    if (found.measured) {
      const [u, v] = [x(found.measured.sparsity), y(found.measured.sparsity)];
      inside.push(`<line class="explore-measured" x1="${u}" x2="${u}" y1="${v}" y2="${box.bottom}"/>`);
      inside.push(`<path class="explore-cross" d="M${u - 5},${v - 5}l10,10m0,-10l-10,10"/>`);
    }
    inside.push(`<circle class="explore-crossing" cx="${here}" cy="${there}" r="6"/>`);
    parts.push(`<g clip-path="url(#explore-clip)">${inside.join("")}</g>`);

    // Each label stands outside of the two lines if there is room, the left one below the other.
    const marks = [[found.limit, `limit ${percent(found.limit)}`]];
    if (found.measured) marks.push([found.measured.sparsity, `one-shot ${measuredWords(found.measured)[0]}`]);
    marks.sort((one, other) => one[0] - other[0]);
    marks.forEach(([s, text], number) => {
      const room = 7.4 * text.length;
      const first = number === 0 && marks.length > 1;
      const left = x(s) + room > box.right || (first && x(s) - room > box.left);
      const [start, base] = [left ? x(s) - room - 4 : x(s) + 4, box.bottom - 10 - 22 * number];
      parts.push(`<rect class="explore-plate" x="${start}" y="${base - 15}" width="${room}" height="20" rx="3"/>`);
      parts.push(`<text x="${start + room / 2}" y="${base}" text-anchor="middle">${text}</text>`);
    });

    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const clip = `x="${box.left}" y="${box.top - 7}" width="${box.right - box.left + 8}" height="${box.bottom - box.top + 7}"`;
    find("frame").innerHTML = `<clipPath id="explore-clip"><rect ${clip}/></clipPath>${parts.join("")}`;
    find("legend-start").hidden = !moved;
    find("legend-measured").hidden = !found.measured;
  }

  // ---------------------------------------------------------------- controls, and the state in the address

  const toStep = (x) => Math.round(Math.log2(x) * data.stepsPerOctave);
  const fromStep = (k) => 2 ** (k / data.stepsPerOctave);
  const allowed = (x, octaves) => (x > 0 && Number.isFinite(x) ? clamp(x, 2 ** -octaves, 2 ** octaves) : 1);

  function writeControls(found) {
    find("network").value = state.view.key;
    find("zoom").checked = state.zoom;
    find("epsilon").value = toStep(state.factor);
    find("epsilon").setAttribute("aria-valuetext", `${short(found.epsilon)} nats, ${relative(state.factor)}`);
    find("epsilon-number").value = short(found.epsilon);
    const default_ = state.factor === 1 ? "" : ` of ${short(state.view.epsilon)}`;
    find("epsilon-note").textContent = `nats, ${relative(state.factor)}${default_}; the scale is logarithmic`;
    find("scale").value = toStep(state.scale);
    find("scale").setAttribute("aria-valuetext", `weights ${times(state.scale)}`);
    find("scale-number").value = short(state.scale);
  }

  let waiting = 0;
  /** Show the state at once; say it, and put it in the address, when the reader pauses. */
  function show(changed) {
    const found = answer(state);
    writeControls(found);
    writeNumbers(found);
    draw(found);
    clearTimeout(waiting);
    const say = () => {
      find("text").textContent = sentence(found);
      find("description").textContent = sentence(found);
      if (changed) history.replaceState(null, "", address());
    };
    if (changed) waiting = setTimeout(say, 250);
    else say();
  }

  function address() {
    const digits = (x) => Number(x.toPrecision(9));
    const words = new URLSearchParams({ network: state.view.key, factor: digits(state.factor), scale: digits(state.scale) });
    if (state.zoom) words.set("zoom", "1");
    return `#${words}`;
  }

  /** Read the address; a part that is missing stays as it is, and what is unknown is passed over. */
  function readAddress() {
    const words = new URLSearchParams(location.hash.slice(1));
    if (!["network", "factor", "scale", "zoom"].some((name) => words.has(name))) return;
    state.view = data.views.find((view) => view.key === words.get("network")) || state.view;
    if (words.has("factor")) state.factor = allowed(Number(words.get("factor")), data.epsilonOctaves);
    if (words.has("scale")) state.scale = allowed(Number(words.get("scale")), data.scaleOctaves);
    state.zoom = words.get("zoom") === "1";
  }

  for (const [name, octaves] of [["epsilon", data.epsilonOctaves], ["scale", data.scaleOctaves]]) {
    find(name).min = -octaves * data.stepsPerOctave;
    find(name).max = octaves * data.stepsPerOctave;
  }
  for (const view of data.views) {
    let group = [...find("network").children].find((child) => child.label === view.group);
    if (!group) {
      group = document.createElement("optgroup");
      group.label = view.group;
      find("network").append(group);
    }
    group.append(new Option(`${view.group.split(" on ")[0]}, ${view.label.replace("Hessian of ", "")}`, view.key));
  }

  const on = (name, event, act) => find(name).addEventListener(event, (e) => (act(e.target), show(true)));
  on("network", "change", (e) => (state.view = data.views.find((view) => view.key === e.value)));
  on("epsilon", "input", (e) => (state.factor = fromStep(Number(e.value))));
  on("scale", "input", (e) => (state.scale = fromStep(Number(e.value))));
  on("epsilon-number", "change", (e) => {
    const typed = Number(e.value);
    // The field shows three digits: who types the default means the default.
    const same = typed === Number(short(state.view.epsilon));
    state.factor = same ? 1 : allowed(typed / state.view.epsilon, data.epsilonOctaves);
  });
  on("scale-number", "change", (e) => (state.scale = allowed(Number(e.value), data.scaleOctaves)));
  on("zoom", "change", (e) => (state.zoom = e.checked));
  on("reset", "click", () => Object.assign(state, { factor: 1, scale: 1, zoom: false }));
  find("controls").addEventListener("submit", (e) => e.preventDefault());
  for (const button of document.querySelectorAll("button.explore-try")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      Object.assign(state, { factor: 1, scale: 1 }, JSON.parse(button.dataset.set));
      show(true);
      find("picture").scrollIntoView({ block: "nearest" });
    });
  }
  window.addEventListener("hashchange", () => (readAddress(), show(false)));
  let drawn = 0;
  new ResizeObserver(() => {
    if (root.clientWidth !== drawn) draw(answer(state));
    drawn = root.clientWidth;
  }).observe(root);

  root.hidden = false;
  readAddress();
  show(false);
})();

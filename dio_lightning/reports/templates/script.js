"use strict";

// Tabs: arrow keys move between them, as WAI-ARIA has it.
const tabs = [...document.querySelectorAll('[role="tab"]')];
function choose(tab) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", String(on));
    one.tabIndex = on ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).classList.toggle("off", !on);
  }
}
tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
});

// Slices of a pair.
for (const pair of document.querySelectorAll(".pair")) {
  for (const button of pair.querySelectorAll("button.slice")) {
    button.addEventListener("click", () => {
      for (const one of pair.querySelectorAll("button.slice")) one.setAttribute("aria-pressed", String(one === button));
      for (const panels of pair.querySelectorAll(".panels")) {
        panels.classList.toggle("off", panels.dataset.slice !== button.dataset.slice);
      }
    });
  }
}

// The viewer is unpacked once, when the first pair is opened.
let unpacked = null;
async function viewer() {
  unpacked ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById("niivue").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return window.niivue;
  })();
  return unpacked;
}

const BLUE = { R: [0, 86], G: [0, 180], B: [0, 233], A: [0, 255], I: [0, 255] };
const ORANGE = { R: [0, 230], G: [0, 159], B: [0, 0], A: [0, 255], I: [0, 255] };
const WHITE = { R: [0, 255], G: [0, 255], B: [0, 255], A: [0, 190], I: [0, 255] };
const MASK = { opacity: 0, cal_min: 0, cal_max: 1 };

const OPTIONS = {
  backColor: [0, 0, 0, 1], fontColor: [1, 0.69, 0, 1], crosshairColor: [1, 0.69, 0, 0.8], crosshairWidth: 0.4, isOrientationTextVisible: true, isCornerOrientationText: true,
  loadingText: "", dragAndDropEnabled: false, multiplanarShowRender: 0, multiplanarLayout: 3, multiplanarEqualSize: false,
  isColorbar: false, isResizeCanvas: true, isNearestInterpolation: true, sagittalNoseLeft: false,
};

async function open(box) {
  const niivue = await viewer();
  const files = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
  box.querySelector(".stage").hidden = false;
  const make = (canvas) => scene(niivue, files, canvas);
  const scenes = [await make(box.querySelector("canvas.back"))];
  controls(box, scenes, make);
  return scenes;
}

// A canvas with all volumes of a pair, where each of them is, and the lines that are drawn into some of them.
async function scene(niivue, files, canvas) {
  const nv = new niivue.Niivue(OPTIONS);
  await nv.attachToCanvas(canvas);
  nv.addColormap("dio_fixed", BLUE);
  nv.addColormap("dio_moving", ORANGE);
  nv.addColormap("dio_grid", WHITE);
  const volume = (name, how) => niivue.NVImage.loadFromBase64({ base64: files[name], name: `${name}.nii.gz`, ...how });
  const place = {};
  const masks = {};
  async function add(name, how, as = name) {
    place[as] = nv.volumes.length;
    nv.addVolume(await volume(name, how));
  }
  const gray = { colormap: "gray", cal_min: 0, cal_max: 255 };
  await add("fixed", gray);
  await add("warped", { ...gray, opacity: 0.5 });
  await add("moving", { ...gray, opacity: 0 });
  for (const [name, colours] of [["fixed", "dio_fixed"], ["warped", "dio_moving"], ["moving", "dio_moving"]]) {
    if (files[`${name}_labels`]) {
      await add(`${name}_labels`, { ...MASK, colormap: colours });
      masks[`${name}_labels`] = outlines(nv.volumes[place[`${name}_labels`]]);
    }
  }
  await add("coronal_grid", { ...MASK, colormap: "dio_grid" }, "grid");
  const grids = {};
  for (const name of ["sagittal", "coronal", "axial"]) grids[name] = (await volume(`${name}_grid`, MASK)).img;
  masks.grid = (v, plane) => grids[plane][v];
  return { nv, place, masks };
}

// Where a label ends within a plane: at voxel v, if its next one along an axis of the plane has another label.
function outlines(image) {
  const labels = image.img.slice();
  const [, nx, ny] = image.hdr.dims;
  const steps = { sagittal: [nx, nx * ny], coronal: [1, nx * ny], axial: [1, nx] };
  return (v, plane) => {
    const [one, two] = steps[plane];
    return labels[v] !== (labels[v + one] ?? 0) || labels[v] !== (labels[v + two] ?? 0) ? 1 : 0;
  };
}

// Lines belong to a plane: one view shows its own everywhere, three planes at once have them where these planes are.
function compose(nv, image, mask, view) {
  const [, nx, ny, nz] = image.hdr.dims;
  const target = image.img;
  if (view !== "three") {
    for (let v = 0; v < target.length; v++) target[v] = mask(v, view);
    return;
  }
  target.fill(0);
  const [x, y, z] = image.mm2vox(nv.frac2mm(nv.scene.crosshairPos));
  const at = (i, j, k) => i + nx * (j + ny * k);
  const draw = (v, plane) => { target[v] = mask(v, plane); };
  for (let k = 0; k < nz; k++) for (let j = 0; j < ny; j++) draw(at(x, j, k), "sagittal");
  for (let k = 0; k < nz; k++) for (let i = 0; i < nx; i++) draw(at(i, y, k), "coronal");
  for (let j = 0; j < ny; j++) for (let i = 0; i < nx; i++) draw(at(i, j, z), "axial");
}

// Swiping, a second canvas with the image above lies over the first one, cut off at a line; NiiVue itself has no such mode.
function controls(box, scenes, make) {
  const field = (name) => box.querySelector(`[name="${name}"]`);
  const kinds = { three: 3, axial: 0, coronal: 1, sagittal: 2 };
  const [{ nv, place }] = scenes;
  const swiping = () => field("how").value === "swipe";
  function refresh() {
    const above = field("above").value;
    const below = above === "warped" ? "moving" : "warped";
    scenes.forEach((one, index) => {
      one.nv.setOpacity(place[below], 0);
      one.nv.setOpacity(place[above], swiping() ? index : Number(field("opacity").value) / 100);
    });
    field("toggle").textContent = `fixed ⇄ ${above}`;
    box.querySelector(".side.left").textContent = above;
    slide();
  }
  function slide() {
    const share = Number(field("opacity").value);
    box.querySelector("output").textContent = `${share} %`;
    box.querySelector(".curtain").hidden = !swiping();
    box.querySelector(".curtain").style.left = `${share}%`;
    box.querySelector("canvas.front").hidden = !swiping();
    box.querySelector("canvas.front").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  }
  function drawLines() {
    const above = field("above").value;
    const wanted = { grid: field("grid").checked };
    for (const name of ["fixed", "moving", "warped"]) {
      wanted[`${name}_labels`] = field("labels").checked && (name === "fixed" || name === above);
    }
    for (const one of scenes) {
      for (const [name, mask] of Object.entries(one.masks)) {
        const image = one.nv.volumes[place[name]];
        if (wanted[name]) compose(one.nv, image, mask, field("view").value);
        image.opacity = wanted[name] ? 0.9 : 0;
      }
      one.nv.updateGLVolume();
    }
  }
  // The second canvas is made when it is asked for, and follows whatever the first one draws.
  async function both() {
    if (!swiping() || scenes.length > 1) return;
    field("how").disabled = true;
    box.querySelector("canvas.front").hidden = false;
    const front = await make(box.querySelector("canvas.front"));
    front.nv.setSliceType(kinds[field("view").value]);
    scenes.push(front);
    const draw = nv.drawScene.bind(nv);
    nv.drawScene = (...given) => {
      const drawn = draw(...given);
      front.nv.scene.crosshairPos = [...nv.scene.crosshairPos];
      front.nv.scene.pan2Dxyzmm = [...nv.scene.pan2Dxyzmm];
      if (swiping()) front.nv.drawScene();
      return drawn;
    };
    drawLines();
    field("how").disabled = false;
  }
  field("opacity").addEventListener("input", () => (swiping() ? slide() : refresh()));
  field("how").addEventListener("change", async () => {
    await both();
    refresh();
    box.dataset.how = field("how").value;
  });
  field("above").addEventListener("change", () => { refresh(); drawLines(); });
  field("labels").addEventListener("change", drawLines);
  field("grid").addEventListener("change", drawLines);
  field("toggle").addEventListener("click", () => {
    field("opacity").value = Number(field("opacity").value) > 50 ? 0 : 100;
    field("opacity").dispatchEvent(new Event("input"));
  });
  box.addEventListener("keydown", (event) => event.key === "t" && field("toggle").click());
  field("view").addEventListener("change", () => {
    for (const one of scenes) one.nv.setSliceType(kinds[field("view").value]);
    drawLines();
  });
  drag(box.querySelector(".curtain"), field("opacity"));
  const text = box.querySelector(".place");
  let waiting = false;
  nv.onLocationChange = (location) => {
    const mm = [...location.mm].slice(0, 3).map((x) => x.toFixed(1)).join(", ");
    text.textContent = `R, A, S: ${mm} mm`;
    const lines = field("grid").checked || field("labels").checked;
    if (!lines || field("view").value !== "three" || waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawLines(); });
  };
  if (!("fixed_labels" in place)) field("labels").closest("label").hidden = true;
  refresh();
}

// The line of the swipe can be taken hold of.
function drag(curtain, slider) {
  curtain.addEventListener("pointerdown", (event) => curtain.setPointerCapture(event.pointerId));
  curtain.addEventListener("pointermove", (event) => {
    if (!curtain.hasPointerCapture(event.pointerId)) return;
    const { left, width } = curtain.parentElement.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - left)) / width);
    slider.dispatchEvent(new Event("input"));
  });
}

for (const box of document.querySelectorAll(".viewer")) {
  box.querySelector(".open").addEventListener("click", async (event) => {
    const button = event.target;
    button.disabled = true;
    button.textContent = "Loading …";
    try {
      box.scenes = await open(box);
      button.hidden = true;
      box.querySelector(".hint").hidden = true;
      box.dataset.ready = "true";
    } catch (error) {
      const hint = box.querySelector(".hint");
      hint.classList.add("problem");
      hint.textContent = `This browser cannot show it: ${error.message}. It needs WebGL 2.`;
      button.textContent = "Look through this pair";
      box.dataset.ready = "false";
    }
  });
}

// Printed, everything is shown.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

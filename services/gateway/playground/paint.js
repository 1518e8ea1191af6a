// Draws objects over a photograph: a colour inside, and a line that shows on any background.

import {HEAT_256, colour} from "./colours.js";
import {shareOf} from "./grouping.js";
import {cells, extent, raster} from "./masks.js";
import {path} from "./outlines.js";
import {canvas} from "./photo.js";

const numbers = new Map();  // of names, in the order in which they appear
/** The colour of an object in a list, as red, green and blue: that of its name, or of its place; no name has that of a place. */
export function colourOf({label, colour: own}, index) {
  if (!label) return colour(2 * (own ?? index) + 1);
  if (!numbers.has(label)) numbers.set(label, numbers.size);
  return colour(2 * numbers.get(label));
}

const LONGEST = 1280;  // pixels of a picture with outlines: lines are fine on small photographs too
const SMOOTHED = 1 / 160;  // of the longer side: reach of the mean that smooths an outline
const LINES = [[4, "rgb(0 0 0 / .55)"], [2.2, "#fff"]];

const traced = new WeakMap();
function traceOf(mask, width, height) {
  if (!traced.has(mask)) traced.set(mask, new Path2D(path(mask, width, height, Math.round(Math.max(width, height) * SMOOTHED))));
  return traced.get(mask);
}

/** The objects that are shown, with their places in the list, the smallest last: on top. */
const layered = objects => objects.map((object, index) => ({object, index})).filter(({object}) => object.mask && !object.hidden)
  .sort((one, other) => shareOf(other.object) - shareOf(one.object));

/** Paint objects for a photograph's copy of this size: filled, or only their outlines, in their colours. */
export function paint(objects, {width, height}, opacity) {
  const scale = LONGEST / Math.max(width, height);
  const picture = canvas(Math.round(width * scale), Math.round(height * scale)), pen = picture.getContext("2d");
  pen.lineJoin = "round";
  for (const {object, index} of layered(objects)) {
    const {mask, outlined} = object, line = traceOf(mask, width, height), colour = `rgb(${colourOf(object, index).join(" ")}`;
    const across = picture.width / mask.width;
    pen.setTransform(across, 0, 0, picture.height / mask.height, 0, 0);
    if (!outlined) {
      pen.globalCompositeOperation = "destination-out";  // no lines of what is below
      pen.fillStyle = "#000";
      pen.fill(line, "evenodd");
      pen.globalCompositeOperation = "source-over";
      pen.fillStyle = `${colour} / ${opacity})`;
      pen.fill(line, "evenodd");
    }
    for (const [wide, shade] of LINES) {
      pen.lineWidth = wide / across;
      pen.strokeStyle = outlined && shade === "#fff" ? `${colour})` : shade;
      pen.stroke(line);
    }
  }
  return picture;
}

/** The part of a photograph's copy inside a mask, at most so many pixels a side, transparent outside. */
export function cutOut(mask, copy, side = 160) {
  const {bbox: [left, upper, width, height]} = extent(mask);
  const scale = Math.min(side / Math.max(width, height, 1), copy.width / mask.width);
  const whole = {width: Math.max(1, Math.round(mask.width * scale)), height: Math.max(1, Math.round(mask.height * scale))};
  const inside = raster(mask, whole.width, whole.height), x = Math.floor(left * scale), y = Math.floor(upper * scale);
  const picture = canvas(Math.max(1, Math.ceil(width * scale)), Math.max(1, Math.ceil(height * scale))), pen = picture.getContext("2d");
  pen.drawImage(copy, -x, -y, whole.width, whole.height);
  const pixels = pen.getImageData(0, 0, picture.width, picture.height);
  for (let at = 0; at < picture.width * picture.height; at++) {
    const row = y + Math.floor(at / picture.width), column = x + at % picture.width;
    if (!inside[row * whole.width + column]) pixels.data[4 * at + 3] = 0;
  }
  pen.putImageData(pixels, 0, 0);
  return picture;
}

/** For each pixel of the copy: the index of the object on top, -1 for none. */
export function topmost(objects, {width, height}) {
  const top = new Int32Array(width * height).fill(-1);
  for (const {object, index} of layered(objects)) cells(object.mask, width, height, at => { top[at] = index; });
  return top;
}

/** A heat map from a grey picture: clear where it is low. */
export async function heat(png) {
  const grey = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
  const scale = Math.min(1, 1280 / Math.max(grey.width, grey.height));
  const picture = canvas(Math.round(grey.width * scale), Math.round(grey.height * scale)), pen = picture.getContext("2d");
  pen.drawImage(grey, 0, 0, picture.width, picture.height);
  const pixels = pen.getImageData(0, 0, picture.width, picture.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const level = pixels.data[at];
    pixels.data.set([...HEAT_256[level], 220 * level / 255], at);
  }
  pen.putImageData(pixels, 0, 0);
  return picture;
}

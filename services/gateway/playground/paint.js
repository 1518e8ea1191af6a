// Draws objects over a photograph: a colour inside, and a line that shows on any background.

import {raster} from "./masks.js";
import {canvas} from "./photo.js";

/** The colour of the object at this place in the list, as red, green and blue. */
export function colour(index) {
  const hue = (210 + index * 137.508) % 360, part = n => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.58 - 0.38 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

export const css = index => `rgb(${colour(index).join(" ")})`;

/**
 * Paint objects in the order of the list. Returns the picture, and for each of its pixels the index
 * of the object on top, -1 for none.
 */
export function paint(objects, width, height, opacity) {
  const picture = canvas(width, height), pen = picture.getContext("2d");
  const pixels = pen.createImageData(width, height), top = new Int32Array(width * height).fill(-1);
  objects.forEach((object, index) => {
    if (object.mask && !object.hidden) fill(pixels.data, top, raster(object.mask, width, height), width, index, opacity);
  });
  pen.putImageData(pixels, 0, 0);
  return {picture, top};
}

function fill(data, top, inside, width, index, opacity) {
  const [red, green, blue] = colour(index), last = inside.length - 1;
  const outside = (at, step) => at + step < 0 || at + step > last || !inside[at + step];
  for (let at = 0; at <= last; at++) {
    if (inside[at]) {
      top[at] = index;
      const x = at % width;
      const edge = x === 0 || x === width - 1 || outside(at, -1) || outside(at, 1) || outside(at, -width) || outside(at, width);
      edge ? set(data, at, 255, 255, 255, 230) : set(data, at, red, green, blue, 255 * opacity);
    } else if ((at % width && inside[at - 1]) || (at < last && (at + 1) % width && inside[at + 1])
        || (at >= width && inside[at - width]) || (at + width <= last && inside[at + width])) {
      set(data, at, 0, 0, 0, 150);
    }
  }
}

function set(data, at, red, green, blue, alpha) {
  data[4 * at] = red; data[4 * at + 1] = green; data[4 * at + 2] = blue; data[4 * at + 3] = alpha;
}

/** A heat map from a grey picture: from clear over blue and orange to yellow. */
export async function heat(png) {
  const grey = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
  const scale = Math.min(1, 1280 / Math.max(grey.width, grey.height));
  const picture = canvas(Math.round(grey.width * scale), Math.round(grey.height * scale)), pen = picture.getContext("2d");
  pen.drawImage(grey, 0, 0, picture.width, picture.height);
  const pixels = pen.getImageData(0, 0, picture.width, picture.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const value = pixels.data[at] / 255;
    set(pixels.data, at / 4, 255 * Math.min(1, 2 * value), 200 * value ** 2, 255 * Math.max(0, 0.6 - value), 220 * value);
  }
  pen.putImageData(pixels, 0, 0);
  return picture;
}

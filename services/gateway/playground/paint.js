// Draws objects over a photograph: a colour inside, and a line that shows on any background.

import {colour, heatColour} from "./colours.js";
import {raster} from "./masks.js";
import {canvas} from "./photo.js";

/** The colour of an object in a list, as red, green and blue: that of its label, or of its place. */
export const colourOf = (object, index) => colour(object.colour ?? index);

/**
 * Paint objects in the order of the list. Returns the picture, and for each of its pixels the index
 * of the object on top, -1 for none.
 */
export function paint(objects, width, height, opacity) {
  const picture = canvas(width, height), pen = picture.getContext("2d");
  const pixels = pen.createImageData(width, height), top = new Int32Array(width * height).fill(-1);
  objects.forEach((object, index) => {
    if (object.mask && !object.hidden) fill(pixels.data, top, raster(object.mask, width, height), width, index, colourOf(object, index), opacity);
  });
  pen.putImageData(pixels, 0, 0);
  return {picture, top};
}

function fill(data, top, inside, width, index, [red, green, blue], opacity) {
  const last = inside.length - 1;
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

/** A heat map from a grey picture: clear where it is low. */
export async function heat(png) {
  const grey = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
  const scale = Math.min(1, 1280 / Math.max(grey.width, grey.height));
  const picture = canvas(Math.round(grey.width * scale), Math.round(grey.height * scale)), pen = picture.getContext("2d");
  pen.drawImage(grey, 0, 0, picture.width, picture.height);
  const pixels = pen.getImageData(0, 0, picture.width, picture.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const level = pixels.data[at];
    set(pixels.data, at / 4, ...heatColour(level), 220 * level / 255);
  }
  pen.putImageData(pixels, 0, 0);
  return picture;
}

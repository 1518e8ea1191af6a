// Masks in COCO's run lengths, which stay compressed: they are drawn run by run, at any size.

/** The start and end of each run inside a mask, down the columns of the picture. */
export function decode({counts, height, width}) {
  const runs = [], lengths = [];
  let position = 0;
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths.at(-2);
    if (lengths.length % 2) runs.push(position, position + value);
    lengths.push(value);
    position += value;
  }
  return {runs: Int32Array.from(runs), counts, height, width};
}

/** Call ``fill(x, top, bottom)`` for each piece of a column inside the mask. */
export function columns({runs, height}, fill) {
  for (let i = 0; i < runs.length; i += 2) {
    for (let start = runs[i]; start < runs[i + 1];) {
      const x = Math.floor(start / height), end = Math.min(runs[i + 1], (x + 1) * height);
      fill(x, start - x * height, end - x * height);
      start = end;
    }
  }
}

/** The mask at another size, row by row: 1 inside, 0 outside. The size is at most the mask's own. */
export function raster(mask, width, height) {
  const inside = new Uint8Array(width * height);
  const column = samples(width, mask.width), row = samples(height, mask.height);
  columns(mask, (x, top, bottom) => {
    for (let u = column[x]; u < column[x + 1]; u++) {
      for (let v = row[top]; v < row[bottom]; v++) inside[v * width + u] = 1;
    }
  });
  return inside;
}

/** For each pixel of ``full``: the first of ``few`` sample points at or after its left edge. */
function samples(few, full) {
  return Int32Array.from({length: full + 1}, (_, pixel) => Math.max(0, Math.ceil(pixel * few / full - 0.5)));
}

/** Closed outlines along the pixels' edges, as lists of x, y; holes run the other way round. */
export function outlines(mask) {
  const {width, height} = mask, inside = raster(mask, width, height), next = new Map();
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x];
  const add = (x0, y0, x1, y1) => {
    const from = y0 * (width + 1) + x0, to = y1 * (width + 1) + x1;
    next.has(from) ? next.get(from).push(to) : next.set(from, [to]);
  };
  columns(mask, (x, top, bottom) => {
    add(x, top, x + 1, top);
    add(x + 1, bottom, x, bottom);
    for (let y = top; y < bottom; y++) {
      if (!at(x - 1, y)) add(x, y + 1, x, y);
      if (!at(x + 1, y)) add(x + 1, y, x + 1, y + 1);
    }
  });
  const rings = [];
  while (next.size) rings.push(ring(next, width + 1));
  return rings;
}

/** The outlines as the path of an SVG. */
export const path = mask => outlines(mask).map(ring => `M${ring.join(" ")}Z`).join("");

/** Take one ring out of ``next``; corners between straight edges are kept, others are not. */
function ring(next, stride) {
  const start = next.keys().next().value, corners = [];
  let here = start, before = 0;
  do {
    const ways = next.get(here), to = ways.pop();
    if (!ways.length) next.delete(here);
    if (to - here !== before) corners.push(here % stride, Math.floor(here / stride));
    before = to - here;
    here = to;
  } while (here !== start);
  return corners;
}

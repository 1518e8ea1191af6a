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

/** The run lengths of a mask, enlarged to this size from a smaller one that is stored row by row. */
export function encode(inside, {width: few, height: low}, {width, height}) {
  const bounds = [];  // where runs begin and end
  for (let x = 0; x < width; x++) {
    const column = Math.floor((x + 0.5) * few / width);
    for (let row = 0, former = 0; row <= low; row++) {
      const here = row < low ? inside[row * few + column] : 0, at = x * height + Math.round(row * height / low);
      if (here !== former && bounds.at(-1) === at) bounds.pop();  // the run continues at the top of the next column
      else if (here !== former) bounds.push(at);
      former = here;
    }
  }
  return {counts: countsOf(bounds, width * height), width, height};
}

/** A mask of these runs as ``decode`` returns it. */
export const packed = ({runs, width, height}) => ({runs, counts: countsOf([...runs], width * height), width, height});

function countsOf(bounds, size) {
  const lengths = [...bounds, ...(bounds.at(-1) === size ? [] : [size])].map((end, index) => end - (bounds[index - 1] ?? 0));
  return lengths.map((length, index) => digits(index > 2 ? length - lengths[index - 2] : length)).join("");
}

function digits(value) {
  let text = "", more = true;
  while (more) {
    const code = value & 31;
    value >>= 5;
    more = value !== (code & 16 ? -1 : 0);
    text += String.fromCharCode(code + (more ? 32 : 0) + 48);
  }
  return text;
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

/** Call ``fill(at)`` for each pixel inside the mask, at another size, row by row: at most its own. */
export function cells(mask, width, height, fill) {
  const column = samples(width, mask.width), row = samples(height, mask.height);
  columns(mask, (x, top, bottom) => {
    for (let u = column[x]; u < column[x + 1]; u++) {
      for (let v = row[top]; v < row[bottom]; v++) fill(v * width + u);
    }
  });
}

/** The mask at another size, row by row: 1 inside, 0 outside. */
export function raster(mask, width, height) {
  const inside = new Uint8Array(width * height);
  cells(mask, width, height, at => { inside[at] = 1; });
  return inside;
}

/** For each pixel of ``full``: the first of ``few`` sample points at or after its left edge. */
function samples(few, full) {
  return Int32Array.from({length: full + 1}, (_, pixel) => Math.max(0, Math.ceil(pixel * few / full - 0.5)));
}

/** The area of a mask in pixels, and its box as COCO has it: left, top, width, height. */
export function extent(mask) {
  let area = 0, left = mask.width, right = 0, upper = mask.height, lower = 0;
  columns(mask, (x, top, bottom) => {
    area += bottom - top;
    left = Math.min(left, x); right = Math.max(right, x + 1);
    upper = Math.min(upper, top); lower = Math.max(lower, bottom);
  });
  return {area, bbox: area ? [left, upper, right - left, lower - upper] : [0, 0, 0, 0]};
}

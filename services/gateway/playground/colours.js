// The colours of client/samclip/drawing.py: an index has the same colour in every picture.

const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

/** The colour of an index, as red, green and blue. */
export function colour(index) {
  const sixth = 6 * ((0.52 + index * 0.618034) % 1), value = index % 2 ? 204 : 255, part = n => {
    const k = (n + sixth) % 6;
    return Math.round(value * (1 - 0.85 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [part(5), part(3), part(1)];
}

/** The colour of a level of a heat map, 0 to 255. */
export function heatColour(level) {
  const place = level / 255 * (HEAT.length - 1), step = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[step].map((low, band) => Math.round(low + (place - step) * (HEAT[step + 1][band] - low)));
}

// "Search closely": a photograph much larger than the model's frame is searched in tiles as well.

import {$, frame} from "./page.js";
import {onChange, photo} from "./work.js";

let of = null;

/** What a question about the whole photograph adds to its request: as many tiles as needed. */
export const tiles = () => $("closely").hidden || !$("close").checked ? {} : {tiles: -1};

$("close").onchange = () => { $("refine").parentElement.hidden = Boolean(tiles().tiles); };
onChange(() => {
  if (of !== photo) { of = photo; $("close").checked = false; }
  $("closely").hidden = !frame || Math.max(photo.width, photo.height) <= 2 * frame;
  $("close").onchange();
});

// Objects in the order of a list: groups of one name, the largest first, and parts inside their whole.

import {extent, raster} from "./masks.js";

const LONGEST = 192;    // pixels of the masks that are compared
const MOST_OUTSIDE = 0.1;  // of a part's area
const SAME = 0.7;       // of what one of two masks has: both have it
const PART = 0.8;       // a part is at most so large beside its whole: nearly equal masks are neighbours

const known = new WeakMap();
/** What comparing needs of a mask, kept with it: its share of the picture, and its pixels as bits. */
function measured(mask) {
  if (!known.has(mask)) {
    const {area, bbox: [left, top, width, height]} = extent(mask);
    known.set(mask, {share: area / mask.width / mask.height, left, top, right: left + width, bottom: top + height, bits: bits(mask)});
  }
  return known.get(mask);
}

/** The share of the picture that an object covers. */
export const shareOf = object => measured(object.mask).share;

function bits(mask) {
  const scale = Math.min(1, LONGEST / Math.max(mask.width, mask.height));
  const inside = raster(mask, Math.max(1, Math.round(mask.width * scale)), Math.max(1, Math.round(mask.height * scale)));
  const packed = new Uint32Array(Math.ceil(inside.length / 32));
  for (let at = inside.indexOf(1); at >= 0; at = inside.indexOf(1, at + 1)) packed[at >> 5] |= 1 << (at & 31);
  return packed;
}

function ones(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Whether one mask lies in another: nearly all of its pixels, of a clearly smaller area. */
function partOf(small, large) {
  if (small.share > PART * large.share) return false;
  if (small.left >= large.right || large.left >= small.right || small.top >= large.bottom || large.top >= small.bottom) return false;
  let all = 0, outside = 0;
  for (let at = 0; at < small.bits.length; at++) {
    if (!small.bits[at]) continue;
    all += ones(small.bits[at]);
    outside += ones(small.bits[at] & ~large.bits[at]);
  }
  return all > 0 && outside <= MOST_OUTSIDE * all;
}

/** Whether two masks of one photograph are of one thing: nearly all that either has. */
function alike(one, other) {
  const {bits} = measured(one), others = measured(other).bits;
  let both = 0, either = 0;
  for (let at = 0; at < bits.length; at++) {
    both += ones(bits[at] & others[at]);
    either += ones(bits[at] | others[at]);
  }
  return both > SAME * either;
}

/** Whether a thing, in any of its sizes, is none of the objects. */
export const isNew = ({candidates}, objects) => !objects.some(({mask, example}) => mask && !example && candidates.some(size => alike(size.mask, mask)));

/** Whether somebody has asked for an object, by words, a click, a name or a map: it stands by itself, even inside another. */
export const asked = ({found, prompt, named, colour}) => Boolean(found || prompt || named || colour !== undefined);

/**
 * Group objects by name. A group is {name, members}, a member {object, index, name, parts}: the index
 * is that in `objects`, parts are the members that lie inside it. Largest first, and those without a
 * name last; in a group, those that were asked for come first, in their order.
 */
export function grouped(objects, wanted) {
  const members = objects.flatMap((object, index) => wanted(object) ? [{object, index, inside: [], ...measured(object.mask)}] : [])
    .sort((one, other) => other.share - one.share || one.index - other.index);
  const wholes = members.filter((member, place) => {
    const whole = asked(member.object) ? null : members.slice(0, place).findLast(larger => larger.object.colour === undefined && partOf(member, larger));
    whole?.inside.push(member);
    return !whole;
  });
  return byName(wholes);
}

/** The name that lists show for an object. */
export const nameOf = ({label, prompt}, index) => label || (prompt ? `object ${index + 1}` : "unnamed");

const placeOf = ({object, index}) => asked(object) ? index : Infinity;

function byName(members) {
  const groups = new Map();
  for (const {object, index, inside, share} of members) {
    const name = nameOf(object, index), group = groups.get(name) ?? {name, share: 0, members: []};
    groups.set(name, group);
    group.share += share;
    group.members.push({object, index, parts: byName(inside).flatMap(({members}) => members)});
  }
  for (const {name, members} of groups.values()) {
    members.sort((one, other) => placeOf(one) - placeOf(other) || 0);
    members.forEach((member, at) => { member.name = members.length > 1 ? `${name} ${at + 1}` : name; });
  }
  const unnamed = ({name}) => name === "unnamed";
  return [...groups.values()].sort((one, other) => unnamed(one) - unnamed(other) || other.share - one.share);
}

/** Members, each followed by its parts. */
export const withParts = members => members.flatMap(member => [member, ...withParts(member.parts)]);

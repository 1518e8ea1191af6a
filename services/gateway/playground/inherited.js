// Labels of photographs whose files have changed since, or had another name or folder: their records have other ids.

import {amend, recordOf, recorded} from "./keeping.js";
import {counted, really, some as listed} from "./page.js";

const partsOf = id => /^([^/]*)\/(.*) (\d+ \d+)$/s.exec(id) ?? [];

/** Give photographs of a folder the labels that they had before, if the user wants them: each is asked about once. Returns what to say. */
export async function inherit(folder, photos, opening) {
  const {changed, moved} = await formers(folder, photos);
  const another = `“${folder}”: ${counted(changed.length, "have")} changed since labelling, or it is another folder of that name.`;
  const isSame = changed.length && !await really(another, "It is another folder", "They have changed"), said = await (isSame ? keepChanged(changed, opening) : settle(changed, () => false)) ?? "";
  if (!moved.length) return said;
  const places = listed([...new Set(moved.map(({where}) => where))]);
  const refused = await really(`You have labelled ${moved.length} of these photographs ${places}.`, "Begin anew", "Use the labels");
  await settle(moved, () => !refused);
  return refused ? said : `${said} ${counted(moved.length, "have")} the labels of last time.`;
}

/** Give photographs their former labels where they are `wanted`, and remember of all that they were asked about. */
async function settle(some, wanted) {
  for (const one of some) await amend(one.each.id, own => ({...own, ...(wanted(one) && one.record), settled: true}));
}

/**
 * The labelled records of photographs that have none: of other files at their places, and of the same files under other names, or in other folders
 * if no photograph of this one has a record. A file is the same if its size and date are; of a file that changed twice, the last one counts.
 */
async function formers(folder, photos) {
  const fresh = photos.filter(({count, done, settled}) => !count && !done && !settled), isNew = fresh.length === photos.length;
  const own = new Set(photos.map(({id}) => id)), paths = new Set(photos.map(({path}) => path)), others = new Map(), found = {changed: [], moved: []};
  const dateOf = id => Number(id.split(" ").at(-1));
  for (const id of (await recorded()).sort((one, other) => dateOf(one) - dateOf(other))) {
    const [, place, path, file] = partsOf(id);
    const [key, kind, where] = place !== folder ? [`${path} ${file}`, "moved", `in “${place}”`] : paths.has(path) ? [path, "changed"] : [file, "moved", `as “${path}”`];
    if (path && !own.has(id) && (place === folder || isNew)) others.set(key, {id, kind, where});
  }
  for (const each of fresh) {
    const [, , path, file] = partsOf(each.id), former = others.get(path) ?? others.get(`${path} ${file}`) ?? others.get(file), record = former && await recordOf(former.id);
    if (record?.done || record?.objects.some(({suggested}) => !suggested)) found[former.kind].push({each, record, where: former.where});
  }
  return found;
}

async function keepChanged(changed, opening) {
  const fitting = new Set();
  for (const one of changed) {
    const {width, height} = one.record.objects[0]?.mask ?? one.record.size, opened = await opening(one.each);
    if (opened?.width === width && opened.height === height) fitting.add(one);
  }
  await settle(changed, one => fitting.has(one));
  const kept = fitting.size, aside = changed.length - kept;
  return [
    kept && `${counted(kept, "have")} changed after labelling. The labels are kept: check them.`,
    aside && `${counted(aside, "have")} another size than at labelling. Those labels are kept aside, and not shown.`,
  ].filter(Boolean).join(" ");
}

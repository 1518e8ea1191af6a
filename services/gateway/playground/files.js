// Many files at once: from a chooser, a folder, or what is dropped on the page.

// Of a folder, those that look like photographs; what cannot be read is refused by name later. Files that were named are all wanted.
const IMAGE = /\.(avif|bmp|gif|hei[cf]|jpe?g|jxl|png|tiff?|webp)$/i;
const wanted = ({id, named}) => named || (IMAGE.test(id) && !id.split("/").some(part => part.startsWith(".")));

/** The files that an input has, as {id, file, folder}: a path in the folder that was chosen, or a name. */
export const chosen = input => sorted([...input.files].map(file => {
  const [folder, ...path] = file.webkitRelativePath.split("/");
  return {id: path.join("/") || file.name, file, folder, named: !folder};
}));

/** The files that were dropped, folders opened. Call it before the event ends. */
export function dropped({items}) {
  const entries = [...items].map(item => item.webkitGetAsEntry()).filter(Boolean), folder = entries.length === 1 && entries[0].isDirectory ? entries[0].name : "";
  return Promise.all(entries.map(walk)).then(found => sorted(found.flat().map(({path, file}) => ({id: folder ? path.slice(folder.length + 1) : path, file, folder, named: !path.includes("/")}))));
}

async function walk(entry) {
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) return [{path, file: await new Promise((done, failed) => entry.file(done, failed))}];
  const reader = entry.createReader(), inside = [];
  const some = () => new Promise((done, failed) => reader.readEntries(done, failed));
  for (let part = await some(); part.length; part = await some()) inside.push(...part);  // a hundred at a time
  return (await Promise.all(inside.map(walk))).flat();
}

const sorted = files => files.filter(wanted).sort((one, other) => one.id < other.id ? -1 : 1);

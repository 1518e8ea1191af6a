// A request about a photograph or a collection, as a command or a program that a user can run.

const RPC = {
  "/segment": "SegmentationService/Segment", "/everything": "SegmentationService/SegmentEverything",
  "/search": "RetrievalService/Search", "/classify": "ClassificationService/Classify", "/semantic": "SemanticSegmentationService/SegmentText",
};
const quote = text => `'${String(text).replaceAll("'", `'\\''`)}'`;
const python = JSON.stringify;  // of texts and lists of texts, which Python writes alike
/** The mask in a request: one that was drawn, an example's, or an area's. */
export const maskIn = ({areas, area, prompts: [{mask, examples} = {}] = []}) => mask ?? examples?.[0].mask ?? (areas?.[0] ?? area)?.rle;
/** The file of that mask, which is too long for a command: another mask has another name, and the same one may be saved twice. */
export function outlineOf({fields, name}) {
  const digest = [...maskIn(fields).counts].reduce((sum, letter) => Math.imul(sum ^ letter.charCodeAt(0), 0x01000193), 0x811c9dc5) >>> 0;
  return `${name.replace(/\.[^.]*$/, "")}.outline-${digest.toString(36)}.png`;
}
const opening = request => `np.asarray(Image.open(${python(outlineOf(request))}).convert("L")) > 127`;
const headOf = path => path.slice("/heads/".length);
/** Return values as the keyword arguments of a call in Python. */
function named(own) {
  const value = each => each === null ? "None" : each === true ? "True" : each === false ? "False" : typeof each !== "object" ? python(each)
    : Array.isArray(each) ? `[${each.map(value).join(", ")}]` : `{${Object.entries(each).map(([name, inner]) => `${python(name)}: ${value(inner)}`).join(", ")}}`;
  return Object.keys(own).every(name => /^[A-Za-z_]\w*$/.test(name)) ? Object.entries(own).map(([name, each]) => `${name}=${value(each)}`) : [`**${value(own)}`];
}
const numbers = box => [box.x_min, box.y_min, box.x_max, box.y_max];

/** The names and texts that a form has for the fields. */
const texts = fields => Object.entries(fields).flatMap(([field, value]) =>
  (Array.isArray(value) && typeof value[0] === "string" ? value : [typeof value === "object" ? JSON.stringify(value) : value]).map(text => [field, text]));

export function curl({path, fields, name}, {origin}) {
  // With -F, a text that begins with @ or < would name a file, and a ; would end it.
  const part = (field, value) => `  --form-string ${quote(`${field}=${value}`)}`;
  const file = name === undefined ? [] : [`  -F ${quote(`image=@"${name.replace(/["\\]/g, "\\$&")}"`)}`];
  const parts = texts(fields).map(([field, text]) => part(field, text));
  return [`curl -sS ${quote(origin + path)}`, ...file, ...parts].join(" \\\n");
}

export function grpcurl({path, fields, name, own}, {grpc}) {
  if (own) fields = {head: headOf(path), parameters: own, model: fields.model};
  const rpc = `samclip.v1.${own ? "CustomHeadService/Ask" : RPC[path]}`;
  if (name === undefined) return `printf '%s' ${quote(JSON.stringify(fields))} | grpcurl -plaintext -d @ ${grpc} ${rpc}`;
  const image = path === "/classify" ? ['"images": [{', "}]"] : ['"image": {', "}"];
  const rest = JSON.stringify(fields, (key, value) => !own && key === "counts" ? btoa(value) : value).slice(1), more = rest === "}" ? rest : `, ${rest}`;
  return `{ printf '{${image[0]}"encoded": "'; base64 -w0 -- ${quote(name)}; printf '%s' ${quote(`"${image[1]}${more}`)}; } \\\n`
    + `  | grpcurl -plaintext -d @ ${grpc} ${rpc}`;
}

export function cli({path, fields: {model, ...fields}, name, own}, {grpc}) {
  if (path === "/search") return ["samclip search", ...searching(fields, name), "--server", grpc, "--", quote(fields.collection)].join(" ");
  const words = own ? ["ask", headOf(path), ...texts(fields).map(([field, text]) => `--set ${quote(`${field}=${text}`)}`)] : [path.slice(1), ...options(fields, name)];
  return ["samclip", ...words, ...(model ? [`--model=${quote(model)}`] : []), "--server", grpc, "--", quote(name)].join(" ");
}

function searching({text, id, with_text, filter = {}, top_k, objects}, image) {
  const pairs = Object.entries(filter).map(pair => ["where", pair.join("=")]);
  const flags = [...Object.entries({text, id, image, "with-text": with_text}), ...pairs].filter(([, value]) => value);
  return [...flags.map(([option, value]) => `--${option}=${quote(value)}`), "--top-k", top_k, ...(objects ? ["--objects"] : [])];
}

function options(fields, name) {
  const words = [];
  const flag = (option, ...values) => words.push(`--${option}`, ...values.map(value => typeof value === "number" ? value.toFixed(1) : quote(value)));
  for (const {points = [], box, mask, text, not_texts = []} of fields.prompts ?? []) {
    for (const point of points) flag(point.negative ? "negative" : "point", point.x, point.y);
    if (box) flag("box", ...numbers(box));
    if (mask) words.push(`--mask=${quote(outlineOf({fields, name}))}`);
    if (text) words.push(`--text=${quote(text)}`);  // with =, it may begin with a dash
    for (const other of not_texts) words.push(`--not=${quote(other)}`);
  }
  if (fields.min_score !== undefined) words.push("--min-score", fields.min_score);
  const {labels = []} = fields, listed = label => labels.length === 1 && /[",]/.test(label) ? `"${label.replaceAll('"', '""')}"` : label;
  for (const label of labels) words.push(`--labels=${quote(listed(label))}`);  // a single one is split at commas that are not in quotes
  if (fields.vocabulary) flag("vocabulary", fields.vocabulary);
  for (const option of ["multimask", "refine", "background"]) if (fields[option]) words.push(`--${option}`);
  if (fields.tiles) words.push("--tiles", "auto");
  return words;
}

export function client({path, fields, name, own}, {grpc}) {
  const mask = !own && maskIn(fields), [method, given] = own ? ["ask", [python(headOf(path)), ...named(own)]] : [`${path.slice(1)}${fields.areas ? "_areas" : ""}`, argumentsOf(path, fields, name)];
  const of = fields.model ? `, model=${python(fields.model)}` : "";
  const opened = `${mask ? "import numpy as np\n" : ""}import samclip\n${mask ? "from PIL import Image\n" : ""}\nclient = samclip.Client(${python(grpc)}${of})\n`;
  if (path === "/search") {
    const {collection, area, ...query} = fields, part = area ? [`mask=${opening({fields, name})}`] : [];
    return `${opened}for hit in client.search(${[python(collection), ...named({...(name && {image: name}), ...query}), ...part].join(", ")}):\n    print(hit)`;
  }
  return `${opened}photo = client.image(${python(name)})\n`
    + `print(photo.${method}(${given.join(", ")}))`;
}

function argumentsOf(path, fields, name) {
  const given = [];
  if (path === "/classify" || path === "/semantic") given.push(python(fields.labels));
  else if (fields.labels) given.push(`labels=${python(fields.labels)}`);
  if (fields.vocabulary) given.push(`vocabulary=${python(fields.vocabulary)}`);
  if (fields.areas) given.push(`masks=[${opening({fields, name})}]`);
  for (const {points = [], box, mask, examples} of fields.prompts ?? []) {
    const tuples = list => `[${list.map(({x, y}) => `(${x.toFixed(1)}, ${y.toFixed(1)})`).join(", ")}]`;
    const included = points.filter(point => !point.negative), excluded = points.filter(point => point.negative);
    if (included.length) given.push(`points=${tuples(included)}`);
    if (excluded.length) given.push(`negative=${tuples(excluded)}`);
    if (mask) given.push(`mask=${opening({fields, name})}`);
    if (examples) given.push(`like=samclip.Example(mask=${opening({fields, name})})`);
    if (box) given.push(`box=(${numbers(box).map(value => value.toFixed(1)).join(", ")})`);
  }
  const [{text, not_texts} = {}, ...others] = fields.prompts ?? [];  // texts of one request share not_texts
  if (text) given.push(`text=${python(others.length ? [text, ...others.map(other => other.text)] : text)}`);
  if (not_texts?.length) given.push(`not_texts=${python(not_texts)}`);
  if (fields.min_score !== undefined) given.push(`min_score=${fields.min_score}`);
  for (const option of ["multimask", "refine", "background"]) if (fields[option]) given.push(`${option}=True`);
  if (fields.tiles) given.push('tiles="auto"');
  return given;
}

// A ZIP archive, without compression: several files are one download.

const TABLE = Uint32Array.from({length: 256}, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ value >>> 1 : value >>> 1;
  return value;
});
const checksum = bytes => ~bytes.reduce((sum, byte) => TABLE[(sum ^ byte) & 255] ^ sum >>> 8, -1) >>> 0;

/** Little-endian numbers: those in a list have four bytes, others two. */
const record = numbers => Uint8Array.from(numbers.flatMap(number => Array.isArray(number) ? number.flatMap(long => [long, long >> 8, long >> 16, long >> 24]) : [number, number >> 8]));
const LOCAL = [0x04034b50], CENTRAL = [0x02014b50], END = [0x06054b50];  // what the records begin with
const VERSION = 20, UTF8 = 0x800, IN_1980 = 0x21;
const UNIX = 0x300, FILE = 0o100644 << 16;  // made on Unix: unzip takes names of other systems for code page 437

/** An archive of files, [blob, name] each. */
export async function zip(files) {
  const contents = [], directory = [];
  let at = 0, length = 0;
  for (const [blob, name] of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer()), called = new TextEncoder().encode(name);
    const about = [VERSION, UTF8, 0, 0, IN_1980, [checksum(bytes), bytes.length, bytes.length], called.length, 0];
    const local = record([LOCAL, ...about]), central = record([CENTRAL, UNIX | VERSION, ...about, 0, 0, 0, [FILE, at]]);
    contents.push(local, called, bytes);
    directory.push(central, called);
    at += local.length + called.length + bytes.length;
    length += central.length + called.length;
  }
  return new Blob([...contents, ...directory, record([END, 0, 0, files.length, files.length, [length, at], 0])], {type: "application/zip"});
}

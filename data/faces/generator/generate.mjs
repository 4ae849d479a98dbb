// Draw cartoon faces with known attributes, always the same for the same split and index.
//
//   node generate.mjs --split train --count 60000 --out ../../../build/faces/train
//   node generate.mjs --split heldout --count 100 --png --out ../heldout
//
// Writes attributes.json (one entry a face: attributes and caption) and either images.npy
// (uint8, count x size x size x 3) or one PNG a face. Attributes are drawn independently
// (though a cap or a santa hat turns curly hair into short), so what a mask hides is independent of what it shows and the true share of, say, beards in a
// posterior is the probability written in WORLD.
import fs from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { build, drawParts, npyWriter, rasterise, rgb, uniforms, writeAttributes } from "./faces.mjs";

const { values: options } = parseArgs({
  options: {
    split: { type: "string", default: "train" },
    count: { type: "string", default: "100" },
    start: { type: "string", default: "0" },
    size: { type: "string", default: "64" },
    png: { type: "boolean", default: false },
    out: { type: "string" },
  },
});
const [count, start, size] = [options.count, options.start, options.size].map(Number);
if (!options.out || ![count, start, size].every(Number.isInteger) || count < 1 || size < 8) {
  console.error("usage: node generate.mjs --split NAME --count N --out FOLDER [--start N] [--size PIXELS] [--png]");
  process.exit(2);
}
fs.mkdirSync(options.out, { recursive: true });
const npy = options.png ? null : npyWriter(options.out, count, size);
const entries = [];
for (let index = start; index < start + count; index++) {
  const { attributes, svg } = build(drawParts(uniforms(`${options.split}/${index}`)));
  const image = rasterise(svg, size);
  if (npy) {
    npy.append(rgb(image));
    entries.push(attributes);
  } else {
    const file = `${String(index).padStart(3, "0")}.png`;
    fs.writeFileSync(path.join(options.out, file), image.asPng());
    entries.push({ file, ...attributes });
  }
}
if (npy) npy.close();
writeAttributes(options.out, entries);

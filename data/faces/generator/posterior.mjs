// Draw faces from the exact posterior of held-out half-faces: all have the same upper half, pixel by pixel.
//
//   node posterior.mjs --faces 32 --draws 256 --seeds ../posterior.json --out ../../../build/faces/posterior
//
// A Metropolis chain starts at the truth, which is itself a draw, and proposes parts from the generator's law. A proposal
// counts if the upper half stays the truth's. A pilot proposes one part after another: those that always count are free, and
// are then proposed together; those that sometimes do are bound; the others keep the truth's value. A number that is shown is
// among these, which is exact up to what 8 bits resolve.
// The seeds file holds the free and the bound parts, and which proposals counted; it is made if it is not there. --out gets
// images.npy (uint8, faces * draws x 64 x 64 x 3, face by face) and attributes.json.
import fs from "node:fs";
import { parseArgs } from "node:util";
import { build, choose, chooseValue, drawParts, HAIR_BEHIND, npyWriter, NUMBERS } from "./faces.mjs";
import { rasterise, rgb, SHAPES, uniforms, WORLD, writeAttributes } from "./faces.mjs";

const SIZE = 64;
const PILOT = 24; // sweeps, one part at a time
const BURN_IN = 16; // sweeps before the first draw

const picture = (parts) => rgb(rasterise(build(parts).svg, SIZE));
const upperHalf = (pixels) => Buffer.from(pixels.subarray(0, (SIZE / 2) * SIZE * 3));

/** A value of a part from the generator's law, as far as it does not depend on other parts. */
function proposal(name, random) {
  if (name in NUMBERS) return NUMBERS[name](random());
  if (!(name in WORLD)) return choose(random, SHAPES[name] ?? HAIR_BEHIND);
  const value = chooseValue(random, WORLD[name]);
  return [value, choose(random, WORLD[name][value][2])];
}

/** One sweep: values are proposed for each group of parts, and kept where `counts` says so. */
function sweep(parts, groups, random, counts) {
  let now = parts;
  const counted = groups.map((names) => {
    const moved = { ...now, ...Object.fromEntries(names.map((name) => [name, proposal(name, random)])) };
    const kept = counts(moved, now);
    if (kept) now = moved;
    return kept;
  });
  return [now, counted];
}

/** The groups of parts of a face that are proposed together, and a string of 1 and 0 for each sweep: which counted. */
function find(index, draws) {
  let parts = drawParts(uniforms(`heldout/${index}`));
  const seen = upperHalf(picture(parts));
  const isSame = (moved) => upperHalf(picture(moved)).equals(seen);
  const names = Object.keys(parts);
  const [pilot, random] = [uniforms(`pilot/${index}`), uniforms(`posterior/${index}`)];
  const [refused, changed] = [new Set(), new Set()];
  for (let i = 0; i < PILOT; i++) {
    const alone = names.map((name) => [name]);
    [parts] = sweep(parts, alone, pilot, (moved, now) => {
      const name = names.find((each) => moved[each] !== now[each]);
      if (name === undefined || String(moved[name]) === String(now[name])) return true;
      const same = isSame(moved);
      (same ? changed : refused).add(name);
      return same;
    });
  }
  const groups = [names.filter((name) => !refused.has(name))];
  groups.push(...names.filter((name) => refused.has(name) && changed.has(name)).map((name) => [name]));
  parts = drawParts(uniforms(`heldout/${index}`));
  const sweeps = [];
  for (let i = 0; i < BURN_IN + draws; i++) {
    const [moved, counted] = sweep(parts, groups, random, isSame);
    parts = moved;
    sweeps.push(counted.map(Number).join(""));
  }
  return { groups, sweeps };
}

/** The draws of a face, from what was found. */
function drawn(index, { groups, sweeps }) {
  const random = uniforms(`posterior/${index}`);
  let parts = drawParts(uniforms(`heldout/${index}`));
  return sweeps
    .map((counted) => {
      let i = 0;
      [parts] = sweep(parts, groups, random, () => counted[i++] === "1");
      return parts;
    })
    .slice(BURN_IN);
}

const { values: options } = parseArgs({
  options: {
    faces: { type: "string", default: "32" },
    draws: { type: "string", default: "256" },
    seeds: { type: "string" },
    out: { type: "string" },
  },
});
const [faces, draws] = [options.faces, options.draws].map(Number);
if (!options.seeds || ![faces, draws].every(Number.isInteger) || faces < 1 || draws < 1) {
  console.error("usage: node posterior.mjs --faces N --draws N --seeds FILE [--out FOLDER]");
  process.exit(2);
}
if (!fs.existsSync(options.seeds)) {
  const found = Array.from({ length: faces }, (_, index) => find(index, draws));
  const lines = found.map((each) => `  ${JSON.stringify(each)}`);
  fs.writeFileSync(options.seeds, `[\n${lines.join(",\n")}\n]\n`);
}
if (options.out) {
  const found = JSON.parse(fs.readFileSync(options.seeds, "utf8"));
  const known = found[0].sweeps.length - BURN_IN;
  if (found.length < faces || known < draws) {
    throw new Error(`${options.seeds} has ${known} draws of ${found.length} faces; delete it to find others`);
  }
  fs.mkdirSync(options.out, { recursive: true });
  const npy = npyWriter(options.out, faces * draws, SIZE);
  const entries = [];
  for (let index = 0; index < faces; index++) {
    for (const parts of drawn(index, found[index]).slice(0, draws)) {
      npy.append(picture(parts));
      entries.push({ face: index, ...build(parts).attributes });
    }
  }
  npy.close();
  writeAttributes(options.out, entries);
}

// Bundles the page into ../static: page.js, page.css and LICENSES.txt, the same bytes each time.
import { build } from "esbuild";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "static");

const result = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.tsx" },
  outdir: target,
  bundle: true,
  minify: true,
  metafile: true,
  format: "iife",
  target: ["chrome105", "firefox110", "safari16"],
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "ascii", // the single file holds this text too, whatever it says its encoding is
  legalComments: "none", // LICENSES.txt has the whole texts
  logLevel: "info",
});

// The packages that are in the bundle, not those that npm installed.
const packages = new Set();
for (const input of Object.keys(result.metafile.inputs)) {
  const match = input.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (match) packages.add(match[1]);
}
const parts = [...packages].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no license file`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
});
writeFileSync(join(target, "LICENSES.txt"), `page.js contains these packages.\n\n${parts.join(`\n${"-".repeat(78)}\n\n`)}`);

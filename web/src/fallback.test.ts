import { readFile } from "node:fs/promises";
import { build, type Rollup } from "vite";
import { expect, test } from "vitest";

// fallback/ is kept in git so that the program builds without npm. It must be what the sources give.
test("fallback/ is up to date; if not: npm run fallback", async () => {
  const result = (await build({ mode: "fallback", logLevel: "silent", build: { write: false } })) as Rollup.RollupOutput;
  expect(result.output.length).toBeGreaterThanOrEqual(4);
  for (const file of result.output) {
    const content = file.type === "chunk" ? file.code : file.source;
    const kept = await readFile(`fallback/${file.fileName}`, "utf8").catch(() => "missing");
    expect(kept === content.toString(), `fallback/${file.fileName} differs from its sources: run npm run fallback`).toBe(true);
  }
});

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { FORMATS_PAGE, formatsPage } from "../scripts/formats.ts";

test("docs/FORMATS.md is what the formats say (npm run formats)", () => {
  assert.equal(readFileSync(FORMATS_PAGE, "utf8"), formatsPage());
});

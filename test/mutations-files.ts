/** The guards of images that are made of several files, and of what a stranger's image may ask of us. */
import type { Mutation } from "./mutations.ts";

export const OF_FILES: readonly Mutation[] = [
  {
    hazard: "H33",
    guard: "children are looked for that name any file of the image",
    file: "src/disk/children.ts",
    from: "identities.add((await file.stat()).identity);",
    to: 'if (file === files.get("")) identities.add((await file.stat()).identity);',
    tests: ["test/files-of-images.test.ts"],
  },
  {
    hazard: "H33",
    guard: "no file of an image is one of its parent's",
    file: "src/disk/open.ts",
    from: "await refuseTwoPlaces(image, source.folder !== undefined);",
    to: "",
    tests: ["test/files-of-images.test.ts"],
  },
  {
    hazard: "H22",
    guard: "no two bands that are written are one file",
    file: "src/formats/sparsebundle.ts",
    from: "if (writes && identities.has(identity)) {",
    to: "if (writes && identities.has(identity) && number < 0) {",
    tests: ["test/files-of-images.test.ts"],
  },
  {
    hazard: "H22",
    guard: "convert replaces no file but those of the image that was there",
    file: "src/disk/convert.ts",
    from: "await refuseParts(place, replaced, options);",
    to: "",
    tests: ["test/files-of-images.test.ts"],
  },
  {
    hazard: "H22",
    guard: "convert replaces nothing that its source is made of",
    file: "src/disk/convert.ts",
    from: "if (!replaced.has(identity)) continue;",
    to: 'if (identity !== "") continue;',
    tests: ["test/files-of-images.test.ts"],
  },
  {
    hazard: "H12",
    guard: "a folder that gives way is not put where it would be swept",
    file: "src/host/destination.ts",
    from: "const folder = mkdtempSync(`${to}.replaced-`);",
    to: "const folder = mkdtempSync(`${from}.replaced-`);",
    tests: ["src/host/destination.test.ts"],
  },
];

/**
 * The repository tests its own shape: who imports whom, how long things are, what they are called, what is listed.
 */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";
import ts from "typescript";

const ROOT = resolve(import.meta.dirname, "..");

/** The table of docs/ARCHITECTURE.md: a layer and the layers it may import, besides itself and `error.ts`. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "error.ts": [],
  bytes: [],
  device: ["bytes"],
  reclaim: ["bytes", "device"],
  formats: ["bytes", "device", "reclaim"],
  volumes: ["bytes", "device"],
  filesystems: ["bytes", "device"],
  host: ["bytes", "device"],
  nbd: ["bytes", "device", "host"],
  live: ["bytes", "device"],
  disk: ["bytes", "device", "reclaim", "formats", "volumes", "filesystems", "host", "live"],
  "disk.ts": ["disk"],
  serve: ["bytes", "device", "formats", "host", "nbd", "live", "disk"],
  "serve.ts": ["serve", "live", "nbd"],
  cli: ["bytes", "disk.ts", "serve.ts"],
  "index.ts": ["bytes", "device", "disk.ts"],
  testing: ["bytes", "device", "reclaim", "formats", "volumes", "filesystems", "nbd", "live"],
};

/** Where modules begin that nobody imports. */
const ENTRIES = ["src/index.ts", "src/cli/main.ts"];

const LINES_MAX = 400;
const TEST_LINES_MAX = 500;
const FUNCTION_LINES_MAX = 70;
const VAGUE_NAME = /(^|[-/])(utils?|misc|common|helpers?|managers?)([-./]|$)/;

interface Module {
  /** From the root, with `/`. */
  readonly path: string;
  readonly text: string;
  readonly tree: ts.SourceFile;
  /** Paths of the project's modules that it imports. */
  readonly imports: readonly string[];
  /** Names of everything else that it imports. */
  readonly packages: readonly string[];
}

const modules = ["src", "test", "bench", "scripts"].flatMap(modulesBelow);
const byPath = new Map(modules.map((module) => [module.path, module]));
const inSource = modules.filter(({ path }) => path.startsWith("src/"));
const isTest = ({ path }: Module): boolean => path.endsWith(".test.ts");

function modulesBelow(folder: string): Module[] {
  if (!existsSync(join(ROOT, folder))) return [];
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => parse(join(folder, name)));
}

function parse(path: string): Module {
  const text = readFileSync(join(ROOT, path), "utf8");
  const tree = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const imports: string[] = [];
  const packages: string[] = [];
  const visit = (node: ts.Node): void => {
    const from =
      ts.isImportDeclaration(node) || ts.isExportDeclaration(node)
        ? node.moduleSpecifier
        : ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword
          ? node.arguments[0]
          : undefined;
    if (from && ts.isStringLiteral(from)) {
      if (from.text.startsWith(".")) imports.push(relative(ROOT, resolve(ROOT, dirname(path), from.text)));
      else packages.push(from.text);
    }
    ts.forEachChild(node, visit);
  };
  visit(tree);
  return { path, text, tree, imports, packages };
}

/** `src/formats/qcow2/read.ts` lies in the layer `formats`. */
const layerOf = (path: string): string => path.split("/")[1]!;

test("modules import only what their layer may", () => {
  const breaches = inSource.flatMap((module) => {
    const layer = layerOf(module.path);
    const allowed = new Set([
      ...(MAY_IMPORT[layer] ?? []),
      layer,
      "error.ts",
      ...(isTest(module) ? ["testing"] : []),
    ]);
    return module.imports
      .filter((path) => !path.startsWith("src/") || !allowed.has(layerOf(path)))
      .map((path) => `${module.path} imports ${path}`);
  });
  assert.deepEqual(breaches, []);
  assert.deepEqual(
    inSource.map(({ path }) => layerOf(path)).filter((layer) => !(layer in MAY_IMPORT)),
    [],
    "every layer stands in the table",
  );
});

/** What a plug-in folder's door exports. */
const DOOR = /^export const \w+: (ImageFormat|VolumeScheme|FileSystemReader)\b/m;

const doors = inSource.filter(
  ({ path, text }) => /^src\/(formats|volumes|filesystems)\/[^/]+\.ts$/.test(path) && DOOR.test(text),
);

/** The door whose room or test a module is. */
const doorOf = (path: string): string | undefined =>
  doors.find((door) => door.path === path || path.startsWith(door.path.replace(/\.ts$/, "/")))?.path;

test("every format, volume scheme and filesystem is listed in its all.ts", () => {
  const unlisted = doors.filter(
    ({ path }) => !byPath.get(join(dirname(path), "all.ts"))?.imports.includes(path),
  );
  assert.deepEqual(
    unlisted.map(({ path }) => path),
    [],
  );
  assert.ok(doors.length > 0);
});

test("siblings never meet, and only the door enters its rooms", () => {
  const breaches = inSource.flatMap((module) =>
    module.imports
      .filter((path) => {
        const target = doorOf(path);
        const own = doorOf(module.path.replace(/\.test\.ts$/, ".ts"));
        if (target === undefined || target === own) return false;
        if (own !== undefined && layerOf(own) === layerOf(target)) return !isTest(module);
        return target !== path && !isTest(module) && layerOf(module.path) !== "testing";
      })
      .map((path) => `${module.path} imports ${path}`),
  );
  assert.deepEqual(breaches, []);
});

test("no module is an orphan", () => {
  const reached = new Set<string>();
  const reach = (path: string): void => {
    if (reached.has(path)) return;
    reached.add(path);
    byPath.get(path)?.imports.forEach(reach);
  };
  ENTRIES.filter((path) => byPath.has(path)).forEach(reach);
  modules
    .filter((module) => !module.path.startsWith("src/") || isTest(module))
    .forEach(({ path, imports }) => {
      reached.add(path);
      imports
        .filter((target) => target.startsWith("src/testing/") || !target.startsWith("src/"))
        .forEach(reach);
    });
  assert.deepEqual(
    modules.map(({ path }) => path).filter((path) => !reached.has(path)),
    [],
  );
});

test("no module is long", () => {
  const long = modules.flatMap((module) => {
    const lines = module.text.split("\n").length - 1;
    return lines > (isTest(module) ? TEST_LINES_MAX : LINES_MAX) ? [`${module.path}: ${lines} lines`] : [];
  });
  assert.deepEqual(long, []);
});

test("no function is long", () => {
  const long: string[] = [];
  for (const { path, tree } of inSource.filter((module) => !isTest(module))) {
    const lineOf = (position: number): number => tree.getLineAndCharacterOfPosition(position).line + 1;
    const visit = (node: ts.Node): void => {
      if (ts.isFunctionLike(node)) {
        const start = lineOf(node.getStart(tree));
        const lines = lineOf(node.getEnd()) - start + 1;
        if (lines > FUNCTION_LINES_MAX) long.push(`${path}:${start}: ${lines} lines`);
      }
      ts.forEachChild(node, visit);
    };
    visit(tree);
  }
  assert.deepEqual(long, []);
});

test("every module says first what it is", () => {
  const silent = modules.filter((module) => !isTest(module) && !/^(#!.*\n)?\/\*\*/.test(module.text));
  assert.deepEqual(
    silent.map(({ path }) => path),
    [],
  );
});

test("no module has a name that says nothing", () => {
  assert.deepEqual(
    modules.map(({ path }) => path).filter((path) => VAGUE_NAME.test(path)),
    [],
  );
  assert.match("src/disk/utils.ts", VAGUE_NAME);
  assert.doesNotMatch("src/disk/commonality.ts", VAGUE_NAME);
});

interface Package {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
}

test("dependencies are pinned exactly, and each is accounted for", () => {
  const { dependencies, devDependencies } = JSON.parse(
    readFileSync(join(ROOT, "package.json"), "utf8"),
  ) as Package;
  const all = Object.entries({ ...dependencies, ...devDependencies });
  assert.deepEqual(
    all.filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version)),
    [],
    "exact versions",
  );
  const account = readFileSync(join(ROOT, "docs/DEPENDENCIES.md"), "utf8");
  assert.deepEqual(
    all.map(([name]) => name).filter((name) => !account.includes(`\`${name}\``)),
    [],
    "docs/DEPENDENCIES.md names each",
  );
});

/** What the host layer may load: `koffi` for native code, `hash-wasm` for Argon2. */
const HOST_PACKAGES = ["koffi", "hash-wasm"];

test("only the host layer loads packages, and the core needs none", () => {
  const foreign = inSource
    .filter((module) => !isTest(module) && !/^src\/(cli|testing)\//.test(module.path))
    .flatMap(({ path, packages }) =>
      packages
        .filter(
          (name) =>
            !name.startsWith("node:") && !(HOST_PACKAGES.includes(name) && path.startsWith("src/host/")),
        )
        .map((name) => `${path} imports ${name}`),
    );
  assert.deepEqual(foreign, []);
});

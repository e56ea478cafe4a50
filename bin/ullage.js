#!/usr/bin/env node
// Written so that every Node there is can parse it: an old one gets a sentence instead of a syntax error.
var version = process.versions.node.split(".").map(Number);

if (version[0] < 22 || (version[0] === 22 && version[1] < 18)) {
  process.stderr.write("ullage needs Node 22.18 or newer; this is Node " + process.versions.node + ".\n");
  process.exitCode = 2;
} else {
  void Promise.all([import("node:module"), import("node:fs")]).then(function (modules) {
    if (modules[0].enableCompileCache) modules[0].enableCompileCache();
    // A clone runs its sources as they are; what is published holds only what was compiled from them.
    var sources = new URL("../src/cli/main.ts", import.meta.url);
    var compiled = new URL("../dist/cli/main.js", import.meta.url);
    return import(modules[1].existsSync(sources) ? sources : compiled);
  });
}

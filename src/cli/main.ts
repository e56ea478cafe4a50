/**
 * The command line: its words in, an exit code out.
 */
import { existsSync, readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { addCommands, type Finish } from "./commands.ts";
import { EXIT, failureOf, renderFailure } from "./failure.ts";
import { faceOf, leaveOnInterrupt, outliveReaders } from "./terminal.ts";
import { printable } from "./text.ts";

const EXAMPLES = `
Examples:
  ullage disk.qcow2                      what is used, free and returnable; changes nothing
  ullage reclaim disk.qcow2              show the plan, ask, give the space back
  ullage explain disk.qcow2 --sector 0   who owns this sector
  ullage explain disk.qcow2              why is it so big

Exit status: 0 done, 1 bug, 2 usage, 3 corrupt, 4 unsupported, 5 refused as unsafe, 6 busy, 7 I/O error,
130 interrupted at a safe point.`;

function program(finish: Finish): Command {
  const ullage = new Command("ullage")
    .description("Finds the space that a virtual machine's disk no longer uses, and takes it back.")
    .version(version(), "--version")
    .helpOption("-h, --help", "show this, or the options of a command")
    .addHelpText("after", EXAMPLES);
  addCommands(ullage, finish);
  return ullage;
}

function version(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

async function main(words: readonly string[]): Promise<void> {
  leaveOnInterrupt();
  outliveReaders();
  const finish = (exit: number): void => {
    process.exitCode = exit;
  };
  const ullage = program(finish);
  const { screen } = faceOf(false);
  for (const command of [ullage, ...ullage.commands]) {
    command.showHelpAfterError(`  hint: see ${command === ullage ? "" : "ullage "}${command.name()} --help`);
    command.exitOverride().configureOutput({
      outputError: (text, write) =>
        write(`${printable(text.trim().replace(/^error: /, "ullage: "), screen)}\n`),
    });
  }
  try {
    if (words.length === 0) ullage.help({ error: true });
    const [first] = words;
    const known = ["help", ...ullage.commands.map((command) => command.name())];
    // A lone word that is no file was meant as a command.
    if (/^[a-z]+$/.test(first!) && !known.includes(first!) && !existsSync(first!)) {
      ullage.error(`error: "${first}" is neither a command nor a file`);
    }
    await ullage.parseAsync(words, { from: "user" });
  } catch (error) {
    if (error instanceof CommanderError) return finish(error.exitCode === 0 ? 0 : EXIT.usage);
    const told = failureOf(error);
    const isBare = told.kind === "usage" && told.hint === null;
    const failure = isBare ? { ...told, hint: `see ullage ${words[0]} --help` } : told;
    process.stderr.write(`${renderFailure(failure, undefined, screen)}\n`);
    finish(EXIT[failure.kind]);
  }
}

await main(process.argv.slice(2));

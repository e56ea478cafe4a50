/**
 * The command line: which commands and options there are, and the exit code. What a command needs is loaded when it
 * is called, since a survey of a big disk takes less time than loading everything would.
 */
import { existsSync, readFileSync } from "node:fs";
import { Command, CommanderError, Option } from "commander";
import { EXIT, failureOf, renderFailure } from "./failure.ts";
import {
  addJudgeOptions,
  addProofOption,
  addReadOptions,
  addWriteOptions,
  parseKeyValues,
  parseOffset,
  parseSector,
  parseSize,
  type ReadFlags,
} from "./options.ts";
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

function program(finish: (exit: number) => void): Command {
  const face = (flags: ReadFlags): ReturnType<typeof faceOf> => faceOf(flags.json === true);
  const ullage = new Command("ullage")
    .description("Finds the space that a virtual machine's disk no longer uses, and takes it back.")
    .version(version(), "--version")
    .helpOption("-h, --help", "show this, or the options of a command")
    .addHelpText("after", EXAMPLES);

  addJudgeOptions(
    addReadOptions(
      ullage
        .command("survey", { isDefault: true })
        .description("what is used, free and returnable, and who says so; changes nothing")
        .argument("<image...>", "disk images")
        .option("--map", "draw the whole disk"),
    ),
  ).action(async (paths: string[], flags: ReadFlags) => {
    finish(await (await import("./survey.ts")).run(paths, flags, face(flags)));
  });

  addWriteOptions(
    addJudgeOptions(
      addReadOptions(
        ullage
          .command("reclaim")
          .description("show the plan, ask, give the space back, compare promise and result")
          .argument("<image...>", "disk images")
          .option("--verify", "hash everything that is used before and after"),
      ),
    ),
  ).action(async (paths: string[], flags: ReadFlags) => {
    finish(await (await import("./reclaim.ts")).run(paths, flags, face(flags)));
  });

  addProofOption(
    addReadOptions(
      ullage
        .command("explain")
        .description("why is it so big; or who owns a byte, or where a file lies")
        .argument("<image>", "disk image")
        .argument("[offset...]", "offsets on the guest's disk: 1048576, 0x100000, 1M", parseOffset)
        .option("--sector <n>", "the same by number of the 512-byte sector, may be repeated", parseSector)
        .option("--path <file>", "where a file of the guest lies: /etc/passwd or 2:/etc/passwd"),
    ),
  ).action(async (path: string, offsets: readonly number[], flags: ReadFlags) => {
    finish(await (await import("./explain.ts")).run(path, offsets, flags, face(flags)));
  });

  addWriteOptions(
    addReadOptions(
      ullage
        .command("check")
        .description("the image's own structures: errors and leaks")
        .argument("<image...>", "disk images")
        .addOption(new Option("--repair <what>", "give leaked clusters back").choices(["leaks"])),
    ),
  ).action(async (paths: string[], flags: ReadFlags) => {
    finish(await (await import("./check.ts")).run(paths, flags, face(flags)));
  });

  addReadOptions(
    ullage
      .command("create")
      .description("make a new, empty image")
      .argument("<image>", "file to make; it must not exist")
      .argument("<bytes>", "size that the guest sees: 20G", parseSize)
      .option("-o <key=value>", "option of the format, as for qemu-img create", parseKeyValues),
  ).action(async (path: string, bytes: number, flags: ReadFlags) => {
    finish(await (await import("./image.ts")).runCreate(path, bytes, flags, face(flags)));
  });

  addReadOptions(
    ullage.command("info").description("describe images").argument("<image...>", "disk images"),
  ).action(async (paths: string[], flags: ReadFlags) => {
    finish(await (await import("./image.ts")).runInfo(paths, flags, face(flags)));
  });

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
    const typo = words[0]!;
    if (
      /^[a-z]+$/.test(typo) &&
      !ullage.commands.some((command) => command.name() === typo) &&
      !existsSync(typo)
    ) {
      ullage.error(`error: "${typo}" is neither a command nor a file`);
    }
    await ullage.parseAsync(words, { from: "user" });
  } catch (error) {
    if (error instanceof CommanderError) return finish(error.exitCode === 0 ? 0 : EXIT.usage);
    const failure = failureOf(error);
    process.stderr.write(`${renderFailure(failure, undefined, screen)}\n`);
    finish(EXIT[failure.kind]);
  }
}

await main(process.argv.slice(2));

/**
 * The commands and their options. What a command needs is loaded when it is called: a survey of a big disk takes less
 * time than loading everything would.
 */
import { type Command, Option } from "commander";
import { addKeyOptions, asking } from "./keys.ts";
import {
  addAlsoOption,
  addJudgeOptions,
  addProofOption,
  addReadOptions,
  addWindowOptions,
  addWriteOptions,
  parseAddress,
  parseCount,
  parseDuration,
  parseKeyValues,
  parseMoment,
  parseOffset,
  parseSector,
  parseShare,
  parseSize,
  type ReadFlags,
} from "./options.ts";
import type { ServeFlags } from "./serve.ts";
import { type Face, faceOf } from "./terminal.ts";
import type { TopFlags } from "./top.ts";
import type { UndoFlags } from "./undo.ts";

/** In words, because a help text must not wait until all formats are loaded. */
const MADE_FORMATS = "qcow2, raw, vhdx, vhd, vdi, vmdk, parallels, sparsebundle, sparseimage";

/** Takes the exit code of a command. */
export type Finish = (exit: number) => void;

export function addCommands(ullage: Command, finish: Finish): void {
  const finished = async (flags: ReadFlags, run: (face: Face) => Promise<number>): Promise<void> =>
    finish(await run(faceOf(flags.json === true)));

  surveyCommand(ullage).action((paths: string[], flags: ReadFlags) =>
    finished(flags, async (face) => (await import("./survey.ts")).run(paths, asking(flags, face), face)),
  );
  reclaimCommand(ullage).action((paths: string[], flags: ReadFlags) =>
    finished(flags, async (face) => (await import("./reclaim.ts")).run(paths, asking(flags, face), face)),
  );
  eraseCommand(ullage).action((paths: string[], flags: ReadFlags) =>
    finished(flags, async (face) => (await import("./erase.ts")).run(paths, asking(flags, face), face)),
  );
  explainCommand(ullage).action((path: string, offsets: readonly number[], flags: ReadFlags) =>
    finished(flags, async (face) =>
      (await import("./explain.ts")).run(path, offsets, asking(flags, face), face),
    ),
  );
  checkCommand(ullage).action((paths: string[], flags: ReadFlags) =>
    finished(flags, async (face) => (await import("./check.ts")).run(paths, flags, face)),
  );
  createCommand(ullage).action((path: string, bytes: number, flags: ReadFlags) =>
    finished(flags, async (face) => (await import("./image.ts")).runCreate(path, bytes, flags, face)),
  );
  convertCommand(ullage).action((path: string, destination: string, flags: ReadFlags) =>
    finished(flags, async (face) =>
      (await import("./convert.ts")).run(path, destination, asking(flags, face), face),
    ),
  );
  serveCommand(ullage).action((paths: string[], flags: ServeFlags) =>
    finished(flags, async (face) => (await import("./serve.ts")).run(paths, asking(flags, face), face)),
  );
  undoCommand(ullage).action((path: string, flags: UndoFlags) =>
    finished(flags, async (face) => (await import("./undo.ts")).run(path, flags, face)),
  );
  topCommand(ullage).action((socket: string, flags: TopFlags) =>
    finished(flags, async (face) => (await import("./top.ts")).run(socket, flags, face)),
  );
  infoCommand(ullage).action((paths: string[], flags: ReadFlags) =>
    finished(flags, async (face) => (await import("./image.ts")).runInfo(paths, flags, face)),
  );
}

function surveyCommand(ullage: Command): Command {
  const command = ullage
    .command("survey", { isDefault: true })
    .description("what is used, free and returnable, and who says so; changes nothing")
    .argument("<image...>", "disk images")
    .option("--map", "draw the whole disk");
  return addReadOptions(addKeyOptions(addWindowOptions(addJudgeOptions(command))));
}

function reclaimCommand(ullage: Command): Command {
  const command = ullage
    .command("reclaim")
    .description("show the plan, ask, give the space back, compare promise and result")
    .argument("<image...>", "disk images");
  return addReadOptions(addKeyOptions(addWindowOptions(addJudgeOptions(addWriteOptions(command))))).option(
    "--verify",
    "hash everything that is used before and after",
  );
}

function eraseCommand(ullage: Command): Command {
  const command = ullage
    .command("erase")
    .description("overwrite everything that is free, give it back, and say what that proves")
    .argument("<image...>", "disk images")
    .addOption(
      new Option("--pattern <pattern>", "what it is overwritten with; default: random").choices([
        "random",
        "zeros",
      ]),
    )
    .option("--verify", "plant canaries and look for them; hash everything that is used before and after");
  return addReadOptions(
    addKeyOptions(addWindowOptions(addAlsoOption(addProofOption(addWriteOptions(command))))),
  );
}

function explainCommand(ullage: Command): Command {
  const command = ullage
    .command("explain")
    .description("why is it so big; or who owns a byte, or where a file lies")
    .argument("<image>", "disk image")
    .argument("[offset...]", "offsets on the guest's disk: 1048576, 0x100000, 1M", parseOffset)
    .option("--sector <n>", "the same by number of the 512-byte sector, may be repeated", parseSector)
    .option("--path <file>", "where a file of the guest lies: /etc/passwd or 2:/etc/passwd");
  return addReadOptions(addKeyOptions(addWindowOptions(addProofOption(command))));
}

function checkCommand(ullage: Command): Command {
  const command = ullage
    .command("check")
    .description("the image's own structures: errors and leaks")
    .argument("<image...>", "disk images")
    .addOption(new Option("--repair <what>", "give leaked clusters back").choices(["leaks"]));
  return addReadOptions(addWindowOptions(addWriteOptions(command)));
}

function createCommand(ullage: Command): Command {
  const command = ullage
    .command("create")
    .description("make a new, empty image")
    .argument("<image>", "file to make; it must not exist")
    .argument("<bytes>", "size that the guest sees: 20G", parseSize)
    .option("-o <key=value>", "option of the format, as for qemu-img create", parseKeyValues);
  return addReadOptions(command, `format to make: ${MADE_FORMATS}; default: qcow2`);
}

function convertCommand(ullage: Command): Command {
  const command = ullage
    .command("convert")
    .description("copy a disk into another format, without what the guest no longer uses")
    .argument("<image>", "disk image to read")
    .argument("<destination>", "file to make")
    .option("--to <format>", `${MADE_FORMATS}; default: what the destination's suffix says`)
    .option("--subformat <name>", "short for -o subformat=NAME: streamOptimized, dynamic, fixed")
    .option("-o <key=value>", "option of the format, as for qemu-img create", parseKeyValues)
    .option("--include-free", "copy everything that is mapped, also what the guest no longer uses")
    .option("--keep-chain", "keep the backing file instead of copying its content")
    .option("--force", "replace the destination, once the copy is whole")
    .option("--verify", "read both again and compare");
  return addReadOptions(addKeyOptions(addWindowOptions(addProofOption(command))));
}

function infoCommand(ullage: Command): Command {
  const command = ullage.command("info").description("describe images").argument("<image...>", "disk images");
  return addReadOptions(addWindowOptions(command));
}

function serveCommand(ullage: Command): Command {
  const command = ullage
    .command("serve")
    .description("export disks over NBD; every TRIM of the guest gives space back at once")
    .argument("<image...>", "disk images; the first one is the default export")
    .option("--socket <path>", "listen on this UNIX socket")
    .option("--listen <host:port>", "listen on TCP; without TLS on loopback only", parseAddress)
    .option("--control <path>", "UNIX socket for ullage top; default: the socket's path with .control")
    .option("--read-only", "refuse writes, and take no lock")
    .option("--snapshots", "export the snapshots too, as NAME@SNAPSHOT")
    .addOption(
      new Option("--erase <pattern>", "overwrite what is freed before it is given back").choices([
        "random",
        "zeros",
      ]),
    )
    .option("--guard-for <time>", "what is freed can be taken back for so long: 24h", parseDuration)
    .option("--guard-max <bytes>", "so many bytes at most: 10GiB", parseSize)
    .option("--guard-writes", "what is written over can be taken back too")
    .option("--alarm-share <share/time>", "alarm when more is trimmed in that time: 25%/10m", parseShare)
    .option("--tls-cert <file>", "TLS with this certificate (PEM)")
    .option("--tls-key <file>", "and its key (PEM)")
    .option("--tls-ca <file>", "who signs the certificates of clients (PEM)")
    .option("--tls-verify", "turn clients away that show no such certificate")
    .option("--tls-psk <file>", "TLS with the keys of this file, as psktool writes it")
    .addOption(
      new Option("--tls <how>", "whether clients may go without; default: require").choices([
        "require",
        "allow",
      ]),
    )
    .option("--max-connections <n>", "turn further clients away; default: 64", parseCount)
    .option("--delay <words>", "let requests wait: 10ms, or read=10ms,write=0.5s")
    .option("--error <words>", "let requests fail: 1%, or trim=0.1:EIO,write=after100:ENOSPC")
    .option("--error-file <file>", "only while this file exists")
    .option("--error-seed <n>", "draw the same failures again", parseCount)
    .option("--log <file>", "append a line for each request; - is stderr");
  return addReadOptions(addKeyOptions(addWindowOptions(command)));
}

function undoCommand(ullage: Command): Command {
  const command = ullage
    .command("undo")
    .description("take back what a guest trimmed, zeroed or wrote over while it was guarded")
    .argument("<image>", "disk image; it must not be in use")
    .option("--since <time>", "everything since then: 10:42, 10:42:05 or 2026-11-26T10:42", parseMoment)
    .addOption(new Option("--last", "the last burst of it").conflicts(["since", "forget"]))
    .option("--to <file>", "into a new qcow2 overlay of that name; the image stays as it is")
    .option("--over-writes", "also where the guest has written something else since")
    .addOption(new Option("--forget", "give up whatever is guarded").conflicts("since"));
  return addReadOptions(addWriteOptions(command));
}

function topCommand(ullage: Command): Command {
  return ullage
    .command("top")
    .description("live counters of a served disk")
    .argument("<socket>", "socket of ullage serve")
    .option("--once", "show them once and leave")
    .option("--json", "one JSON document on stdout each time");
}
